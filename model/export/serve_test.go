package export

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/template"

	"qlora/internal/golden"
	"qlora/model/data"
	"qlora/model/weights"
)

// The template in a Modelfile writes what the model was trained on.
func TestModelfileTemplate(t *testing.T) {
	tmpl, err := template.New("").Parse(ollamaTemplate)
	if err != nil {
		t.Fatal(err)
	}
	chat, err := data.TemplateNamed("qwen2_5")
	if err != nil {
		t.Fatal(err)
	}
	system := "Be brief."
	conv := data.Conversation{System: &system, Messages: []data.Message{{Role: data.User, Content: "hi {{x}}"}, {Role: data.Assistant, Content: "a\nb"}, {Role: data.User, Content: "<b>"}}}
	want, err := chat.Render(conv, true)
	if err != nil {
		t.Fatal(err)
	}
	type message struct{ Role, Content string }
	messages := []message{{"system", system}}
	for _, m := range conv.Messages {
		messages = append(messages, message{string(m.Role), m.Content})
	}
	var got strings.Builder
	if err := tmpl.Execute(&got, map[string]any{"Messages": messages}); err != nil {
		t.Fatal(err)
	}
	if got.String() != want {
		t.Errorf("%q, trained on %q", got.String(), want)
	}
}

func TestModelfile(t *testing.T) {
	s := mini(t)
	s.Template = s.Template.WithSystem("You are \"Ada\".\nBe brief.")
	s.Model.Generation = &weights.GenerationConfig{DoSample: true, Temperature: 0.7, TopP: 0.8, TopK: 20, RepetitionPenalty: 1.05}
	got, err := s.Modelfile(Modelfile{From: "qwen2.5:7b", Adapter: "./adapter.gguf"})
	if err != nil {
		t.Fatal(err)
	}
	want := `FROM qwen2.5:7b
ADAPTER ./adapter.gguf
TEMPLATE """` + ollamaTemplate + `"""
SYSTEM """You are "Ada".
Be brief."""
PARAMETER stop "<|im_end|>"
PARAMETER stop "<|endoftext|>"
PARAMETER temperature 0.7
PARAMETER top_k 20
PARAMETER top_p 0.8
PARAMETER repeat_penalty 1.05
`
	if got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	for _, bad := range []string{`say """x"""`, `he said "no"`} {
		s.Template = s.Template.WithSystem(bad)
		if _, err := s.Modelfile(Modelfile{From: "x"}); err == nil {
			t.Errorf("%s went into a Modelfile", bad)
		}
	}
	for id, want := range map[string]string{"Qwen/Qwen2.5-0.5B-Instruct": "qwen2.5:0.5b", "qwen/qwen2.5-coder-7b-instruct": "qwen2.5-coder:7b", "Qwen/Qwen2.5-7B": "", "Qwen/Qwen2.5-Coder-72B-Instruct": "", "": ""} {
		if got := LibraryModel(id); got != want {
			t.Errorf("%s is %q, want %q", id, got, want)
		}
	}
}

// adapter makes a folder with a configuration, and the golden weights of an adapter where tensors is "".
func adapter(t *testing.T, config, tensors string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "adapter_config.json"), []byte(config), 0o666); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "adapter_model.safetensors")
	if tensors == "" {
		text, err := os.ReadFile(golden.Path(t, "lora", "mini", "adapter_a", "adapter_model.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, text, 0o666); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	if err := weights.WriteSafetensors(file, nil, []weights.Entry{weights.F32Entry(tensors, []int{1}, []float32{1})}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestCheck(t *testing.T) {
	const rest = `"peft_type": "LORA", "target_modules": ["q_proj"], "base_model_name_or_path": "Qwen/Qwen2.5-7B-Instruct", `
	for _, c := range []struct {
		name, config, tensors, arch string
		refuse                      string // servers that do not take it
		say                         string // in what one of them says
	}{
		{"plain", `{` + rest + `"r": 8, "lora_alpha": 32}`, "", "qwen2", "", "vllm serve Qwen/Qwen2.5-7B-Instruct --enable-lora --lora-modules tuned="},
		{"rank 16 is the default", `{` + rest + `"r": 16, "lora_alpha": 32}`, "", "qwen2", "", "--max-lora-rank 16 --lora-target-modules down_proj gate_proj"},
		{"rank 24", `{` + rest + `"r": 24, "lora_alpha": 32}`, "", "qwen2", "", "rank 24 is over the default of 16: --max-lora-rank 32"},
		{"rank of a pattern", `{` + rest + `"r": 8, "lora_alpha": 32, "rank_pattern": {"q_proj": 48}}`, "", "qwen2", "tgi", "--max-lora-rank 64"},
		{"rank 600", `{` + rest + `"r": 600, "lora_alpha": 32}`, "", "qwen2", "vllm", "over 512"},
		{"alpha", `{` + rest + `"r": 8, "lora_alpha": 12.5}`, "", "qwen2", "", "lora_alpha is 12.5, which vLLM declares an integer"},
		{"rslora", `{` + rest + `"r": 8, "lora_alpha": 32, "use_rslora": true}`, "", "qwen2", "", "leaves out rsLoRA"},
		{"dora", `{` + rest + `"r": 8, "lora_alpha": 32, "use_dora": true}`, "", "qwen2", "all", "DoRA"},
		{"modules_to_save", `{` + rest + `"r": 8, "lora_alpha": 32, "modules_to_save": ["lm_head"]}`, "", "qwen2", "all", "modules_to_save is [lm_head]"},
		{"bias", `{` + rest + `"r": 8, "lora_alpha": 32, "bias": "all"}`, "", "qwen2", "all", "trained biases"},
		{"head", `{` + rest + `"r": 8, "lora_alpha": 32}`, "base_model.model.lm_head.lora_A.weight", "qwen2", "all", "it adapts lm_head"},
		{"IA3", `{"peft_type": "IA3", "r": 8, "lora_alpha": 1, "target_modules": ["q_proj"]}`, "", "", "all", `peft_type is "IA3"`},
		{"no rank", `{"peft_type": "LORA", "base_model_name_or_path": "x"}`, "", "", "all", "lacks r"},
		{"no base", `{"peft_type": "LORA", "r": 8, "lora_alpha": 32, "target_modules": ["q_proj"]}`, "", "", "tgi", "base_model_name_or_path is empty"},
		{"another architecture", `{` + rest + `"r": 8, "lora_alpha": 32}`, "", "mamba", "all", `type "mamba"`},
	} {
		verdicts, err := Check(adapter(t, c.config, c.tensors), c.arch, Servers)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		said := ""
		for _, v := range verdicts {
			if refused := c.refuse == "all" || v.Server == c.refuse; v.Loads == refused || refused != (v.Command == "") {
				t.Errorf("%s: %s: loads %v: %v", c.name, v.Server, v.Loads, v.Problems)
			}
			said += strings.Join(append(append(v.Problems, v.Notes...), v.Command), "\n")
		}
		if !strings.Contains(said, c.say) {
			t.Errorf("%s: %q is not in\n%s", c.name, c.say, said)
		}
	}
	if _, err := Check(t.TempDir(), "", Servers); err == nil {
		t.Error("an empty folder was judged")
	}
	if _, err := Check(golden.Path(t, "lora", "mini", "adapter_a"), "", []string{"triton"}); err == nil || !strings.Contains(err.Error(), "choose among vllm") {
		t.Error(err)
	}
}
