package main

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

//go:generate sh -c "go run . help --flags-markdown > ../../docs/flags.md"

const flagsIntro = `# Flags

Every flag of ms-swift 3.0 to 4.6 for ` + "`sft`, `infer`, `eval` and `export`" + `, and what becomes of it here. Made from the
flag table and the command structs of cmd/qlora (` + "`go generate ./cmd/qlora`" + `); a test says when it is stale.

| class | meaning |
|---|---|
| works | does what it does in ms-swift; the default is ms-swift's unless the text says otherwise |
| own | a flag that ms-swift does not have |
| no effect | accepted, and a notice says why nothing changes |
| not supported | an error that says what to use instead; a value that asks for nothing, in brackets, passes |

Any other flag is an error that names the nearest one. Flags may stand in a YAML or JSON file, ` + "`qlora sft run.yaml --lora_rank 16`" + `: its
keys are the names of flags, and the command line goes before it. A flag given twice counts as given last, and a notice says so.
`

// className are the classes in words.
var className = map[class]string{works: "works", noEffect: "no effect", unsupported: "not supported"}

// flagRow is a line of the page.
type flagRow struct{ name, class, fallback, text string }

// flagsMarkdown is docs/flags.md.
func flagsMarkdown(k *kong.Kong) string {
	var b strings.Builder
	b.WriteString(flagsIntro)
	for _, verb := range []string{"sft", "infer", "eval", "export"} {
		fmt.Fprintf(&b, "\n## %s\n\n", verb)
		if instead, ok := otherVerbs[verb]; ok {
			fmt.Fprintf(&b, "No verb here: %s.\n\n", instead)
		}
		b.WriteString("| flag | class | default | |\n|---|---|---|---|\n")
		for _, r := range flagRows(k, verb) {
			fmt.Fprintf(&b, "| `--%s` | %s | %s | %s |\n", r.name, r.class, r.fallback, strings.ReplaceAll(r.text, "|", `\|`))
		}
	}
	b.WriteString("\n## Older names\n\n| name | stands for |\n|---|---|\n")
	for _, old := range slices.Sorted(maps.Keys(aliases)) {
		fmt.Fprintf(&b, "| `--%s` | `--%s` |\n", old, aliases[old])
	}
	return b.String()
}

// flagRows are the flags of a verb by name: the fields of its struct and what the table adds.
func flagRows(k *kong.Kong, verb string) []flagRow {
	var rows []flagRow
	for _, node := range k.Model.Children {
		if node.Name != verb {
			continue
		}
		for _, f := range node.Flags {
			r := flagRow{name: f.Name, class: "own", text: f.Help}
			if findGroup(verb, f.Name) != nil {
				r.class = className[works]
			}
			if f.HasDefault {
				r.fallback = "`" + f.Default + "`"
			} else if isBool(f) && f.Target.Kind() == reflect.Bool {
				r.fallback = "`false`"
			}
			rows = append(rows, r)
		}
	}
	for _, g := range flagTable {
		if g.class == works || !slices.Contains(strings.Fields(g.verbs), verb) {
			continue
		}
		text := g.why
		if values := offered(g.off); len(values) > 0 {
			text += " [" + strings.Join(values, ", ") + "]"
		}
		for name := range strings.FieldsSeq(g.names) {
			rows = append(rows, flagRow{name, className[g.class], "", text})
		}
	}
	slices.SortFunc(rows, func(a, b flagRow) int { return cmp.Compare(a.name, b.name) })
	return rows
}

// offered are the values of a flag that ask for nothing, less those that always do.
func offered(off []string) []string {
	return slices.DeleteFunc(slices.Clone(off), func(v string) bool { return slices.Contains(disabled, v) })
}
