package data

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// Template is a chat format of the ChatML family. The format itself is in render.go; models
// differ in the system turn they get when the user gives none, and in whether they know tools.
type Template struct {
	Name          string
	DefaultSystem string   // of a conversation that names no system; "": no system turn
	Stop          []string // control tokens that end the assistant's turn
	Tools         bool     // has a format for tools
}

const (
	imStart   = "<|im_start|>"
	imEnd     = "<|im_end|>"
	endOfText = "<|endoftext|>"
)

var stop = []string{imEnd, endOfText}

var templates = []Template{
	{Name: "qwen2_5", DefaultSystem: "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", Stop: stop, Tools: true},
	{Name: "qwen", DefaultSystem: "You are a helpful assistant.", Stop: stop, Tools: true},
	{Name: "smollm2", DefaultSystem: "You are a helpful AI assistant named SmolLM, trained by Hugging Face", Stop: stop},
	{Name: "chatml", Stop: stop},
}

// known maps the sha256 of a model's Jinja chat template, less one line end at its end, to
// the template here that writes the same. Jinja is never run: a template is a program, and a
// model file may come from anyone.
var known = map[string]string{
	"55b2f4a26ac9ee719330a61a0c39d9e538b0e9322212f048326318cff4f8674a": "qwen2_5", // Qwen2.5-*-Instruct
	"4039eed0f28b7aaa337e70c76cfedba3271ee32505835a095a8c92e536b3c355": "qwen",    // Qwen2.5-*, the base models
	"872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788": "smollm2", // SmolLM2-*-Instruct
}

// TemplateNamed returns the template the user names.
func TemplateNamed(name string) (Template, error) {
	i := slices.IndexFunc(templates, func(t Template) bool { return t.Name == name })
	if i < 0 {
		var names []string
		for _, t := range templates {
			names = append(names, t.Name)
		}
		return Template{}, fmt.Errorf("unknown template %q: choose one of %s", name, strings.Join(names, ", "))
	}
	return templates[i], nil
}

// RecognizeTemplate returns the template that writes what a model's Jinja text would.
func RecognizeTemplate(jinja string) (Template, error) {
	if jinja == "" {
		return Template{}, fmt.Errorf("the model brings no chat template: name one, as in --template chatml")
	}
	sum := sha256.Sum256([]byte(strings.TrimSuffix(jinja, "\n"))) // Jinja drops that line end too
	name, ok := known[hex.EncodeToString(sum[:])]
	if !ok {
		return Template{}, fmt.Errorf("the model's chat template (sha256 %x) is not one we know, and templates of model files are never run: if it is ChatML, say --template chatml", sum)
	}
	return TemplateNamed(name)
}

// WithSystem returns the template with another default system: the user's --system, which
// gives way to the system of a row. The empty string means no system turn.
func (t Template) WithSystem(system string) Template {
	t.DefaultSystem = system
	return t
}
