// Command qlora fine-tunes Qwen2.5 by LoRA, and runs and measures what came out.
//
// Each verb has a file of its own, which holds its flags (a struct that kong reads: the source
// of types, defaults and help) and wires the model packages together. The words of a command
// line pass through argv.go, which reads them as ms-swift does, and flags.go, which says
// what becomes of the flags of ms-swift that have no field here. Results go to standard output,
// all else to standard error.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"qlora/model/train"
)

// commands are the verbs, as kong reads them.
type commands struct {
	SFT    sftCmd    `cmd:"" help:"Train a LoRA adapter."`
	Infer  inferCmd  `cmd:"" help:"Talk to a model, or answer a dataset."`
	Export exportCmd `cmd:"" help:"Write a model or an adapter for other programs; say which servers take it."`
	Eval   evalCmd   `cmd:"" help:"Measure a model on a dataset: exact answers, likelihood."`
	Fetch  fetchCmd  `cmd:"" help:"Get a model or a dataset from a hub into the local cache."`
	Data   dataCmd   `cmd:"" help:"Check a dataset: rows dropped, lengths, the exact tokens and mask of a row."`
	Plan   planCmd   `cmd:"" help:"Say what a run would take of a card's memory, and how fast it would be; no card is needed."`
	Bench  benchCmd  `cmd:"" help:"Account for the time and memory of kernels, steps, decoding and jobs; compare results, cards and peers."`
	Doctor doctorCmd `cmd:"" help:"Say what this machine has and lacks, with the fix."`
}

var verbNames = verbsOf(reflect.TypeFor[commands]())

func verbsOf(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		names = append(names, kongName(t.Field(i).Name))
	}
	return names
}

// env is what a verb may touch of the world.
type env struct {
	ctx      context.Context // done at the first SIGINT, SIGTERM or SIGUSR1
	in       io.Reader
	out, err io.Writer
	args     []string     // the command line
	flags    []*kong.Flag // of the verb, with their values
	config   string       // path of the configuration file; "" without one
	exit     func(code int)
}

func (e *env) logf(format string, args ...any) { fmt.Fprintf(e.err, format+"\n", args...) }

// preparing makes the first signal end the program at once, until done is called: reading a model and a
// dataset may take minutes, and there is nothing to save.
func (e *env) preparing() (done func()) {
	stop := context.AfterFunc(e.ctx, func() {
		e.logf("qlora: %v", &train.Interrupted{Cause: context.Cause(e.ctx)})
		e.exit(exitInterrupted)
	})
	return func() {
		if !stop() {
			select {} // the program is ending
		}
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGUSR1)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(os.Args[1:], &env{ctx: ctx, in: os.Stdin, out: os.Stdout, err: os.Stderr, exit: os.Exit}))
}

// run is the program: it returns the exit status.
func run(args []string, e *env) int {
	p, err := parse(args)
	switch {
	case err != nil:
		e.logf("qlora: %v", err)
		return exitCode(usageError{err})
	case p.text != "":
		fmt.Fprint(e.out, p.text)
		return 0
	}
	for _, n := range p.notices {
		e.logf("%s", n)
	}
	e.args, e.flags, e.config = args, p.command.Selected().Flags, p.config
	err = p.command.Run(e)
	switch {
	case errors.Is(err, context.Canceled):
		e.logf("qlora: interrupted (%v)", context.Cause(e.ctx))
	case err != nil:
		e.logf("qlora: %v", err)
	}
	return exitCode(err)
}

// parsed is a command line that was understood.
type parsed struct {
	text    string // what to print, and nothing else to do: help, version
	command *kong.Context
	config  string
	notices []string
}

// parse reads the words after the program's name.
func parse(args []string) (*parsed, error) {
	var cli commands
	k, err := kong.New(&cli, kong.Name("qlora"), kong.NoDefaultHelp())
	if err != nil {
		return nil, err // a mistake in a struct tag
	}
	if len(args) == 0 {
		return nil, errors.New("what is to be done?\n\n" + overview(k))
	}
	verb, rest := args[0], args[1:]
	switch {
	case slices.Contains([]string{"--version", "version"}, verb):
		return &parsed{text: versionText()}, nil
	case slices.Contains([]string{"--help", "-h", "help"}, verb):
		if len(rest) == 1 && rest[0] == "--flags-markdown" { // makes docs/flags.md
			return &parsed{text: flagsMarkdown(k)}, nil
		}
		if len(rest) == 0 || !slices.Contains(verbNames, rest[0]) {
			return &parsed{text: overview(k)}, nil
		}
		return help(k, rest)
	case !slices.Contains(verbNames, verb) && !isMergeLoRA(verb):
		return nil, unknownVerb(verb)
	}
	if isMergeLoRA(verb) {
		args = slices.Concat([]string{"export"}, rest, []string{"--merge_lora", "true"})
	}
	node, words, err := leaf(k, args)
	if err != nil {
		return nil, err
	}
	if len(node.Children) > 0 {
		if len(words) == 0 || words[0] == "--help" || words[0] == "-h" {
			return &parsed{text: manual(k, node)}, nil
		}
		return nil, unknownSubverb(node, words[0])
	}
	return parseVerb(k, node, words)
}

// parseVerb reads the words behind a verb: a configuration file, if the first one names one, and flags,
// which go before it.
func parseVerb(k *kong.Kong, node *kong.Node, words []string) (*parsed, error) {
	p := &parsed{}
	verb, shapes := pathOf(node), shapesOf(k)
	words, operands := takeOperands(node, words, shapes[verb])
	var file []setting
	if len(words) > 0 && isConfig(words[0]) {
		p.config, words = words[0], words[1:]
		var err error
		if file, p.notices, err = readConfig(p.config); err != nil {
			return nil, err
		}
	}
	if verb == "fetch" && len(words) > 0 && !strings.HasPrefix(words[0], "-") {
		words = append([]string{"--model"}, words...) // qlora fetch ORG/NAME
	}
	settings, err := splitWords(words)
	if err != nil {
		return nil, err
	}
	settings, notices := lastOf(settings)
	p.notices = append(p.notices, notices...)
	settings = override(file, settings)
	if slices.ContainsFunc(settings, func(s setting) bool { return s.name == "help" }) {
		return &parsed{text: manual(k, node)}, nil
	}
	words, notices, err = resolve(verb, settings, shapes)
	if err != nil {
		return nil, err
	}
	p.notices = append(p.notices, notices...)
	if p.command, err = k.Parse(slices.Concat(strings.Fields(verb), words, operands)); err != nil {
		for _, s := range settings {
			if strings.HasPrefix(err.Error(), "--"+s.name+":") {
				err = s.fault(err)
			}
		}
		return nil, fmt.Errorf("%w (`qlora %s --help` explains the flags)", err, verb)
	}
	if err := finiteNumbers(p.command.Selected().Flags); err != nil {
		return nil, err
	}
	return p, nil
}

// finiteNumbers refuses a NaN or an infinity, which strconv takes for numbers.
func finiteNumbers(flags []*kong.Flag) error {
	for _, f := range flags {
		v := reflect.Indirect(f.Target)
		if !v.IsValid() || v.Kind() != reflect.Float64 {
			continue
		}
		if x := v.Float(); math.IsNaN(x) || math.IsInf(x, 0) {
			return fmt.Errorf("--%s %v: must be a finite number", f.Name, x)
		}
	}
	return nil
}

// isMergeLoRA reports whether a verb is ms-swift's short one for export --merge_lora true.
func isMergeLoRA(verb string) bool { return strings.ReplaceAll(verb, "-", "_") == "merge_lora" }

// otherVerbs are commands of ms-swift that are no verbs here, and what to use instead.
var otherVerbs = map[string]string{
	"deploy":  "nothing is served here: `qlora infer --adapters CHECKPOINT` answers, and a checkpoint is a PEFT adapter that others serve: vllm serve MODEL --enable-lora --lora-modules NAME=CHECKPOINT",
	"pt":      "use `qlora sft`, which trains on answers",
	"rlhf":    "use `qlora sft`, which trains on answers",
	"sample":  "use `qlora infer --val_dataset`",
	"rollout": "use `qlora infer --val_dataset`",
	"app":     "use `qlora infer`, in the terminal",
	"web_ui":  "use `qlora sft` and `qlora infer`, in the terminal",
}

func unknownVerb(verb string) error {
	if instead, ok := otherVerbs[strings.ReplaceAll(verb, "-", "_")]; ok {
		return fmt.Errorf("%s: known but not supported: %s", verb, instead)
	}
	if near, ok := nearest(verb, verbNames); ok {
		return fmt.Errorf("unknown verb %q: did you mean `qlora %s`?", verb, near)
	}
	return fmt.Errorf("unknown verb %q: `qlora --help` lists the verbs", verb)
}

// shapesOf returns the shape of every flag of every verb, by its path: "sft", "bench kernels".
func shapesOf(k *kong.Kong) map[string]map[string]shape {
	shapes := make(map[string]map[string]shape)
	var visit func(nodes []*kong.Node)
	visit = func(nodes []*kong.Node) {
		for _, node := range nodes {
			own := make(map[string]shape)
			for _, f := range node.Flags {
				takes := one
				switch {
				case f.IsSlice():
					takes = list
				case isBool(f):
					takes = flag
				}
				own[f.Name] = takes
			}
			shapes[pathOf(node)] = own
			visit(node.Children)
		}
	}
	visit(k.Model.Children)
	return shapes
}

// isBool reports whether a flag is a bool or, where unset differs from false, a *bool.
func isBool(f *kong.Flag) bool {
	t := f.Target.Type()
	return t.Kind() == reflect.Bool || t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Bool
}

// version is what the Makefile links in: the commit.
var version string

// versionText says what this binary was built from.
func versionText() string {
	if version == "" {
		version = "of an unknown commit"
		if info, ok := debug.ReadBuildInfo(); ok {
			for _, s := range info.Settings {
				if s.Key == "vcs.revision" {
					version = s.Value[:min(12, len(s.Value))]
				}
			}
		}
	}
	return fmt.Sprintf("qlora %s, %s %s/%s, backends: %s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH, backendNames)
}
