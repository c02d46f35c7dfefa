package data

import (
	"os"
	"strings"
	"testing"

	"qlora/internal/golden"
)

// smolLM2 is the chat template of SmolLM2-*-Instruct, as its GGUF file holds it.
const smolLM2 = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"

func TestRecognizeTemplate(t *testing.T) {
	text, err := os.ReadFile(golden.Path(t, "tokenizer", "chat_template.jinja"))
	if err != nil {
		t.Fatal(err)
	}
	instruct := string(text)
	qwen2_5 := template(t, "qwen2_5").DefaultSystem
	for want, jinja := range map[string]string{
		"qwen2_5": instruct,
		"qwen":    strings.ReplaceAll(instruct, qwen2_5, template(t, "qwen").DefaultSystem),
		"smollm2": smolLM2,
	} {
		if !strings.Contains(jinja, template(t, want).DefaultSystem+"<|im_end|>") {
			t.Errorf("the default system of %s is not its template's", want)
		}
		for _, end := range []string{"", "\n"} { // Jinja drops one line end at the end
			got, err := RecognizeTemplate(strings.TrimSuffix(jinja, "\n") + end)
			if err != nil || got.Name != want {
				t.Errorf("%s: got %q, %v", want, got.Name, err)
			}
		}
	}
	for _, jinja := range []string{"", instruct + " ", strings.Replace(smolLM2, "SmolLM", "Smollm", 1), "{{ ''.__class__ }}"} {
		if got, err := RecognizeTemplate(jinja); err == nil || !strings.Contains(err.Error(), "--template chatml") {
			t.Errorf("%.30q: got %q, %v", jinja, got.Name, err)
		}
	}
	if _, err := TemplateNamed("llama3"); err == nil || !strings.Contains(err.Error(), "qwen2_5") {
		t.Error(err)
	}
}

func TestSmolLM2(t *testing.T) {
	tmpl := template(t, "smollm2")
	got, err := tmpl.Render(Conversation{Messages: []Message{{Role: User, Content: "Hi"}}}, true)
	want := "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
	if err != nil || got != want {
		t.Errorf("%q, %v", got, err)
	}
	_, err = tmpl.Render(Conversation{Messages: []Message{{Role: Tool, Content: "x"}}}, true)
	if err == nil || !strings.Contains(err.Error(), "tools") {
		t.Error("a template without a format for tools wrote one:", err)
	}
}

// What Python's json.dumps(json.loads(x), ensure_ascii=False) prints.
func TestPythonJSON(t *testing.T) {
	for in, want := range map[string]string{
		`{"b":1,"a":[1,2,{}],"c":[]}`:                                `{"b": 1, "a": [1, 2, {}], "c": []}`,
		`"<b>&\/\u00e9\u4f60\ud83d\ude00\"\\\n\r\t\b\f\u0001\u007f"`: "\"<b>&/é你😀\\\"\\\\\\n\\r\\t\\b\\f\\u0001\x7f\"",
		`[true,false,null]`:                                          `[true, false, null]`,
		`[0,-0,-0.0,1.0,1e3,1E+2,0.5,100000000000000000000]`:         `[0, 0, -0.0, 1.0, 1000.0, 100.0, 0.5, 100000000000000000000]`,
		`[1e15,1e16,1.5e16,123456789012345678.0]`:                    `[1000000000000000.0, 1e+16, 1.5e+16, 1.2345678901234568e+17]`,
		`[0.0001,0.00001,1.5e-7,5e-324,0.1]`:                         `[0.0001, 1e-05, 1.5e-07, 5e-324, 0.1]`,
	} {
		got, err := appendPythonJSON(nil, []byte(in))
		if err != nil || string(got) != want {
			t.Errorf("%s:\n got %s, %v\nwant %s", in, got, err, want)
		}
	}
	if _, err := appendPythonJSON(nil, []byte("1e999")); err == nil {
		t.Error("1e999 was printed")
	}
}
