package main

import (
	"fmt"
	"reflect"
	"strings"
	"unicode"

	"github.com/alecthomas/kong"
)

// helpWidth is the column that help is wrapped at.
const helpWidth = 100

const intro = `qlora fine-tunes Qwen2.5 by LoRA on one machine, with the flags of ms-swift.

Usage: qlora <verb> [--flag value ...]

`

const outro = `
` + "`qlora <verb> --help`" + ` explains the flags of a verb. Exit status: 0 done, 1 a check did not hold,
2 usage or bad input, 3 device fault, 4 storage, 5 a value not finite, 6 does not fit,
75 interrupted; training has saved a checkpoint for --resume_from_checkpoint.
`

// overview is the help of the program: its verbs and how to begin.
func overview(k *kong.Kong) string {
	var b strings.Builder
	b.WriteString(intro)
	for _, verb := range k.Model.Children {
		writeEntry(&b, "  "+verb.Name, 10, verb.Help)
	}
	b.WriteString("\n" + firstSteps + outro)
	return b.String()
}

const firstSteps = `To begin:
  qlora doctor
  qlora fetch Qwen/Qwen2.5-0.5B-Instruct
  qlora data --model MODEL --dataset builtin:self-cognition
  qlora sft --model MODEL --dataset builtin:self-cognition --output_dir output
  qlora infer --adapters output/v0-.../checkpoint-...
  qlora export --adapters output/v0-.../checkpoint-... --merge_lora true
`

// manual is the help of a verb: usage, flags by group, examples; of one that has verbs of its own, those.
func manual(k *kong.Kong, node *kong.Node) string {
	var b strings.Builder
	usage := pathOf(node)
	for _, f := range node.Flags {
		if f.Required {
			usage += fmt.Sprintf(" --%s %s", f.Name, placeholder(f))
		}
	}
	for _, p := range node.Positional {
		usage += " " + p.Summary()
	}
	if len(node.Children) > 0 {
		fmt.Fprintf(&b, "Usage: qlora %s <verb> [--flag value ...]\n\n%s\n\n", usage, node.Help)
		for _, child := range node.Children {
			writeEntry(&b, "  "+child.Name, 12, child.Help)
		}
	} else {
		fmt.Fprintf(&b, "Usage: qlora %s [--flag value ...]\n\n%s\n", usage, node.Help)
		writeGroups(&b, node.Flags)
	}
	if node.Detail != "" {
		b.WriteString("\n" + node.Detail + "\n")
	}
	if len(node.Children) > 0 {
		fmt.Fprintf(&b, "\n`qlora %s <verb> --help` explains the flags of a verb.\n", usage)
	} else {
		b.WriteString("\nA list takes several values (--dataset a b); a boolean stands alone or takes true or false;\n'-' and '_' are the same in a flag's name. [x] is the default.\n")
	}
	return b.String()
}

// help explains the verb that words name.
func help(k *kong.Kong, words []string) (*parsed, error) {
	node, rest, err := leaf(k, words)
	if err == nil && len(rest) > 0 && len(node.Children) > 0 {
		err = unknownSubverb(node, rest[0])
	}
	if err != nil {
		return nil, err
	}
	return &parsed{text: manual(k, node)}, nil
}

func writeGroups(b *strings.Builder, flags []*kong.Flag) {
	var order []string
	groups := make(map[string][]*kong.Flag)
	for _, f := range flags {
		title := "Other"
		if f.Group != nil {
			title = f.Group.Title
		}
		if groups[title] == nil {
			order = append(order, title)
		}
		groups[title] = append(groups[title], f)
	}
	for _, title := range order {
		fmt.Fprintf(b, "\n%s\n", title)
		for _, f := range groups[title] {
			text := f.Help
			if f.HasDefault {
				text += " [" + f.Default + "]"
			}
			writeEntry(b, "  --"+f.Name+" "+placeholder(f), 40, text)
		}
	}
}

// placeholder says what a flag's value is.
func placeholder(f *kong.Flag) string {
	if f.PlaceHolder != "" {
		return f.PlaceHolder
	}
	t := f.Target.Type()
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Bool:
		return ""
	case reflect.Int, reflect.Uint32, reflect.Uint64:
		return "N"
	case reflect.Float64:
		return "X"
	case reflect.Slice:
		return "TEXT..."
	}
	return "TEXT"
}

// writeEntry writes a term and, from a column on, its explanation, wrapped.
func writeEntry(b *strings.Builder, term string, column int, text string) {
	term = strings.TrimRight(term, " ")
	b.WriteString(term)
	at := len(term)
	if at >= column {
		b.WriteByte('\n')
		at = 0
	}
	indent := true
	for word := range strings.FieldsSeq(text) {
		if !indent && at+1+len(word) > helpWidth {
			b.WriteByte('\n')
			at, indent = 0, true
		}
		if indent {
			b.WriteString(strings.Repeat(" ", column-at))
			at, indent = column, false
		} else {
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += len(word)
	}
	b.WriteByte('\n')
}

// kongName is the name kong gives to the command of a field: words in lower case.
func kongName(field string) string { return strings.Map(unicode.ToLower, field) }
