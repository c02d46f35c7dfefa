package export

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"qlora/internal/strictjson"
	"qlora/model/lora"
	"qlora/model/weights"
)

// Verdict says whether a server takes an adapter.
type Verdict struct {
	Server   string   `json:"server"`
	Loads    bool     `json:"loads"`
	Problems []string `json:"problems,omitempty"` // why it does not load, each with the fix
	Notes    []string `json:"notes,omitempty"`    // what else to know
	Command  string   `json:"command,omitempty"`  // how to serve it
}

// Servers are the programs that Check knows.
var Servers = []string{"vllm", "sglang", "tgi", "llama.cpp", "ollama"}

// adapterFacts is what decides about an adapter, read without judging it.
type adapterFacts struct {
	PeftType      string          `json:"peft_type"`
	Base          string          `json:"base_model_name_or_path"`
	R             *int            `json:"r"`
	Alpha         *float64        `json:"lora_alpha"`
	Targets       json.RawMessage `json:"target_modules"`
	RSLoRA        bool            `json:"use_rslora"`
	DoRA          bool            `json:"use_dora"`
	Bias          string          `json:"bias"`
	ModulesToSave []string        `json:"modules_to_save"`
	RankPattern   map[string]int  `json:"rank_pattern"`
	AlphaPattern  map[string]any  `json:"alpha_pattern"`

	dir     string
	tensors []string
	added   bool // added_tokens.json lies beside it
	bin     bool // weights in a pickle only
}

// Check says of each server whether it takes the adapter in a folder, why not, and how to serve it. arch is the model
// type of the base, "" where that is not known.
func Check(dir, arch string, servers []string) ([]Verdict, error) {
	a, err := readFacts(dir)
	if err != nil {
		return nil, err
	}
	checks := map[string]func(*adapterFacts, string, *Verdict){"vllm": checkVLLM, "sglang": checkSGLang, "tgi": checkTGI, "llama.cpp": checkLlamaCpp, "ollama": checkOllama}
	var all []Verdict
	for _, server := range servers {
		check := checks[server]
		if check == nil {
			return nil, fmt.Errorf("--check %s: choose among %s", server, strings.Join(Servers, ", "))
		}
		v := Verdict{Server: server}
		check(a, arch, &v)
		v.Loads = len(v.Problems) == 0
		if !v.Loads {
			v.Command = ""
		}
		all = append(all, v)
	}
	return all, nil
}

func readFacts(dir string) (*adapterFacts, error) {
	folder, err := weights.OpenFolder(dir)
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	const limit = 1 << 20
	text, err := folder.ReadFile(lora.ConfigFile, limit)
	if err != nil {
		return nil, fmt.Errorf("not a PEFT adapter: %w", err)
	}
	a := &adapterFacts{dir: dir}
	if err := strictjson.Unmarshal(text, limit, a); err != nil {
		return nil, fmt.Errorf("%s: %w", folder.Path(lora.ConfigFile), err)
	}
	file, err := folder.OpenSafetensors(lora.WeightsFile)
	switch {
	case err == nil:
		defer file.Close()
		a.tensors = file.Names()
	case errors.Is(err, fs.ErrNotExist):
		a.bin = holds(folder, "adapter_model.bin")
		if !a.bin {
			return nil, fmt.Errorf("%s: neither %s nor adapter_model.bin", dir, lora.WeightsFile)
		}
	default:
		return nil, err
	}
	a.added = holds(folder, "added_tokens.json")
	return a, nil
}

// holds reports whether a file of that name lies in a folder.
func holds(folder *weights.Folder, name string) bool {
	f, err := folder.Open(name)
	if err == nil {
		f.Close()
	}
	return err == nil
}

func (v *Verdict) problem(format string, args ...any) {
	v.Problems = append(v.Problems, fmt.Sprintf(format, args...))
}
func (v *Verdict) note(format string, args ...any) {
	v.Notes = append(v.Notes, fmt.Sprintf(format, args...))
}

// one is the way out of whatever a server reads otherwise than PEFT does.
const one = "`qlora export --adapters %s --to_peft_format true` writes the same update with one rank and a scale of 1"

// rank is the largest of the adapter.
func (a *adapterFacts) rank() int {
	most := 0
	if a.R != nil {
		most = *a.R
	}
	for _, r := range a.RankPattern {
		most = max(most, r)
	}
	return most
}

// trained are the last names of the modules that the tensors are of.
func (a *adapterFacts) trained() []string {
	var names []string
	for _, t := range a.tensors {
		t = strings.TrimSuffix(strings.TrimSuffix(t, ".weight"), ".default")
		for _, factor := range []string{".lora_A", ".lora_B", ".lora_embedding_A", ".lora_embedding_B", ".lora_magnitude_vector"} {
			t = strings.TrimSuffix(t, factor)
		}
		names = append(names, t[strings.LastIndexByte(t, '.')+1:])
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// common is what no server runs.
func (a *adapterFacts) common(v *Verdict, arch string) {
	switch {
	case a.PeftType != "LORA":
		v.problem("peft_type is %q, and only LORA is served", a.PeftType)
	case a.R == nil || a.Alpha == nil || len(a.Targets) == 0 || string(a.Targets) == "null":
		v.problem("%s lacks r, lora_alpha or target_modules: it is not whole", lora.ConfigFile)
	}
	if a.DoRA {
		v.problem("use_dora is true: DoRA is not served; merge it with PEFT's merge_and_unload")
	}
	if len(a.ModulesToSave) > 0 {
		v.problem("modules_to_save is %v: whole modules are not served; merge them with PEFT's merge_and_unload", a.ModulesToSave)
	}
	if a.Bias != "" && a.Bias != "none" {
		v.problem("bias is %q: trained biases are not served; merge it with PEFT's merge_and_unload", a.Bias)
	}
	for _, name := range a.trained() {
		if name == "lm_head" || name == "embed_tokens" {
			v.problem("it adapts %s, which is not served: merge it with PEFT's merge_and_unload, or train without it", name)
		}
	}
	if a.bin {
		v.note("its weights are a pickle (adapter_model.bin), which some refuse and nothing here reads: save it as safetensors")
	}
	if arch != "" && arch != "qwen2" && arch != "llama" {
		v.problem("a base of type %q is none that was looked at here", arch)
	}
}

// patterns notes what a server scales wrongly where it reads r and lora_alpha alone.
func (a *adapterFacts) patterns(v *Verdict, server string) {
	if len(a.RankPattern)+len(a.AlphaPattern) > 0 {
		v.note("rank_pattern and alpha_pattern are not read by %s, which would scale those modules wrongly: "+one, server, a.dir)
	}
}

// vllmRanks are the values of vLLM's --max-lora-rank.
var vllmRanks = []int{1, 8, 16, 32, 64, 128, 256, 320, 512}

// checkVLLM follows vLLM's PEFTHelper and its LoRA loader.
func checkVLLM(a *adapterFacts, arch string, v *Verdict) {
	a.common(v, arch)
	if a.Alpha != nil && *a.Alpha != float64(int(*a.Alpha)) {
		v.note("lora_alpha is %g, which vLLM declares an integer: "+one, *a.Alpha, a.dir)
	}
	a.patterns(v, "older versions of vLLM")
	i := slices.IndexFunc(vllmRanks, func(r int) bool { return r >= a.rank() })
	if i < 0 {
		v.problem("rank %d is over 512, vLLM's highest: `qlora export --merge_lora true`", a.rank())
		return
	}
	v.Command = fmt.Sprintf("vllm serve %s --enable-lora --lora-modules tuned=%s", a.baseName(), a.dir)
	if vllmRanks[i] > 16 {
		v.note("rank %d is over the default of 16: --max-lora-rank %d", a.rank(), vllmRanks[i])
		v.Command += fmt.Sprintf(" --max-lora-rank %d", vllmRanks[i])
	}
}

// checkSGLang follows SGLang's LoRA manager.
func checkSGLang(a *adapterFacts, arch string, v *Verdict) {
	a.common(v, arch)
	a.patterns(v, "older versions of SGLang")
	if a.added {
		v.note("added_tokens.json lies in the adapter's folder, which older versions take for new tokens: move it away")
	}
	v.Command = fmt.Sprintf("python -m sglang.launch_server --model-path %s --enable-lora --lora-paths tuned=%s --max-lora-rank %d --lora-target-modules %s",
		a.baseName(), a.dir, a.rank(), strings.Join(a.trained(), " "))
}

// checkTGI follows text-generation-inference.
func checkTGI(a *adapterFacts, arch string, v *Verdict) {
	a.common(v, arch)
	if len(a.RankPattern)+len(a.AlphaPattern) > 0 {
		v.problem("rank_pattern or alpha_pattern: TGI reads r and lora_alpha alone, and would scale those modules wrongly: "+one, a.dir)
	}
	if a.Base == "" {
		v.problem("base_model_name_or_path is empty, and TGI looks it up")
	}
	v.note("TGI is in maintenance: its authors point to vLLM and SGLang")
	v.Command = fmt.Sprintf("LORA_ADAPTERS=tuned=%s text-generation-launcher --model-id %s", a.dir, a.baseName())
}

// checkLlamaCpp follows convert_lora_to_gguf.py and llama-server.
func checkLlamaCpp(a *adapterFacts, arch string, v *Verdict) {
	a.common(v, arch)
	v.note("llama.cpp reads GGUF: `qlora export --adapters %s --to_gguf adapter`", a.dir)
	if a.RSLoRA || len(a.RankPattern)+len(a.AlphaPattern) > 0 {
		v.note("llama.cpp's own converter leaves out rsLoRA and patterns, so its file would be scaled wrongly; ours has the scale in B")
	}
	v.Command = "llama-server -m BASE.gguf --lora adapter.gguf"
}

// checkOllama follows Ollama's convert and server packages.
func checkOllama(a *adapterFacts, arch string, v *Verdict) {
	a.common(v, arch)
	v.note("Ollama takes safetensors adapters of llama and gemma2 alone, and GGUF adapters of any model: `qlora export --adapters %s --to_ollama true` writes that and a Modelfile", a.dir)
	v.Command = "ollama create tuned -f Modelfile"
}

// baseName is the base as a server is given it.
func (a *adapterFacts) baseName() string {
	if a.Base == "" {
		return "BASE"
	}
	return a.Base
}
