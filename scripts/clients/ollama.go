//go:build ignore

// Command ollama reads a Modelfile, renders its template, and opens GGUF files by the packages of Ollama.
//
//	ollama Modelfile FILE.gguf...
package main

import (
	"bytes"
	"encoding/json"
	"log"
	"os"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/fs/ggml"
	"github.com/ollama/ollama/parser"
	"github.com/ollama/ollama/template"
)

type file struct {
	Kind, Architecture string
	Tensors            int
}

func main() {
	text, err := os.ReadFile(os.Args[1])
	check(err)
	modelfile, err := parser.ParseFile(bytes.NewReader(text))
	check(err)
	result := struct {
		Commands map[string]string
		Rendered string
		Files    []file
	}{Commands: map[string]string{}}
	for _, c := range modelfile.Commands {
		result.Commands[c.Name] = c.Args
	}
	t, err := template.Parse(result.Commands["template"])
	check(err)
	var rendered bytes.Buffer
	check(t.Execute(&rendered, template.Values{Messages: []api.Message{{Role: "system", Content: "S"}, {Role: "user", Content: "U1"}, {Role: "assistant", Content: "A1"}, {Role: "user", Content: "U2"}}}))
	result.Rendered = rendered.String()
	for _, path := range os.Args[2:] {
		f, err := os.Open(path)
		check(err)
		g, err := ggml.Decode(f, -1)
		check(err)
		result.Files = append(result.Files, file{g.KV().Kind(), g.KV().Architecture(), len(g.Tensors().Items())})
		f.Close()
	}
	check(json.NewEncoder(os.Stdout).Encode(result))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
