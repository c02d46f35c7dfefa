package export

import (
	"fmt"
	"strconv"
	"strings"
)

// Modelfile is what Ollama makes a model of.
type Modelfile struct {
	From    string // a model of its library, or the path of a .gguf file
	Adapter string // the path of a GGUF adapter, or ""
}

// librarySizes are the sizes of Qwen2.5 in Ollama's library.
var librarySizes = []string{"0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B"}

// LibraryModel is the name in Ollama's library of a model of the hub, "" where it has none. Its weights there are
// quantised; an adapter works on them as on any quantisation of its base.
func LibraryModel(hubID string) string {
	for _, size := range librarySizes {
		if strings.EqualFold(hubID, "Qwen/Qwen2.5-"+size+"-Instruct") {
			return "qwen2.5:" + strings.ToLower(size)
		}
		if size != "72B" && strings.EqualFold(hubID, "Qwen/Qwen2.5-Coder-"+size+"-Instruct") {
			return "qwen2.5-coder:" + strings.ToLower(size)
		}
	}
	return ""
}

// ollamaTemplate is ChatML as a template of Ollama: the system turn is one of the messages. \n are line ends.
const ollamaTemplate = `{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
`

// Modelfile writes the text: where the model comes from, the template it was trained with, its system prompt, what ends
// an answer, and how its authors sample.
func (s *Source) Modelfile(m Modelfile) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "FROM %s\n", m.From)
	if m.Adapter != "" {
		fmt.Fprintf(&b, "ADAPTER %s\n", m.Adapter)
	}
	fmt.Fprintf(&b, "TEMPLATE \"\"\"%s\"\"\"\n", ollamaTemplate)
	switch system := s.Template.DefaultSystem; {
	case strings.Contains(system, `"""`) || strings.HasSuffix(system, `"`):
		return "", fmt.Errorf(`the system prompt %.60q has quotes where a Modelfile has its own: give another by --system`, system)
	case system != "":
		fmt.Fprintf(&b, "SYSTEM \"\"\"%s\"\"\"\n", system)
	}
	for _, stop := range s.Template.Stop {
		fmt.Fprintf(&b, "PARAMETER stop %q\n", stop)
	}
	number := func(name string, v float64) {
		fmt.Fprintf(&b, "PARAMETER %s %s\n", name, strconv.FormatFloat(v, 'g', -1, 64))
	}
	switch g := s.Model.Generation; {
	case g == nil || !g.DoSample:
		number("temperature", 0)
	default:
		number("temperature", g.Temperature)
		number("top_k", float64(g.TopK))
		number("top_p", g.TopP)
	}
	if g := s.Model.Generation; g != nil {
		number("repeat_penalty", g.RepetitionPenalty)
	}
	return b.String(), nil
}
