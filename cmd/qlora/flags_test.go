package main

import (
	"bufio"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// flagsOf returns the flags that the command struct of every verb has.
func flagsOf(t *testing.T) map[string]map[string]shape {
	t.Helper()
	var cli commands
	k, err := kong.New(&cli, kong.NoDefaultHelp())
	if err != nil {
		t.Fatal(err)
	}
	return shapesOf(k)
}

// ours are flags that ms-swift does not have.
var ours = []string{"backend", "sync_ops", "profile_ops", "random_weights", "answers", "json", "vram_budget", "check_memory",
	"adapter_weights", "resume", "with_base", "general", "choices", "markdown", "html", "to_gguf", "check", "quant", "merge_base"}

func TestTableAgreesWithStructs(t *testing.T) {
	shapes := flagsOf(t)
	seen := make(map[string]string) // verb and name -> where
	for i := range flagTable {
		g := &flagTable[i]
		if g.class != works && g.why == "" {
			t.Errorf("%s: no reason, no alternative", g.names)
		}
		for verb := range strings.FieldsSeq(g.verbs) {
			if _, ok := shapes[verb]; !ok && otherVerbs[verb] == "" {
				t.Errorf("the table names a verb %q", verb)
			}
			for name := range strings.FieldsSeq(g.names) {
				if seen[verb+" "+name] != "" {
					t.Errorf("%s --%s is in the table twice", verb, name)
				}
				seen[verb+" "+name] = name
				if _, field := shapes[verb][name]; field != (g.class == works) {
					t.Errorf("%s --%s: class %d in the table, a field of the struct: %v", verb, name, g.class, field)
				}
			}
		}
	}
	for _, verb := range []string{"sft", "infer", "eval", "export"} {
		for name := range shapes[verb] {
			if seen[verb+" "+name] == "" && !slices.Contains(ours, name) {
				t.Errorf("%s --%s is a field that the table does not name", verb, name)
			}
		}
	}
	for old, name := range aliases {
		if seen["sft "+name] == "" && seen["infer "+name] == "" {
			t.Errorf("--%s stands for --%s, which no verb knows", old, name)
		}
	}
}

// TestTableIsWhole holds that the table knows every argument of ms-swift's sft, infer, eval and export,
// 3.0 to 4.6, and of transformers' Seq2SeqTrainingArguments, 4.51 and 5.23: names read from their sources.
func TestTableIsWhole(t *testing.T) {
	file, err := os.Open("testdata/ms-swift-flags.tsv")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	n := 0
	for lines := bufio.NewScanner(file); lines.Scan(); {
		name, verbs, _ := strings.Cut(lines.Text(), "\t")
		if to, ok := aliases[name]; ok {
			name = to
		}
		for verb := range strings.FieldsSeq(verbs) {
			n++
			if findGroup(verb, name) == nil {
				t.Errorf("%s --%s is not in the table", verb, name)
			}
		}
	}
	if n < 890 {
		t.Fatalf("only %d names read", n)
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		line string // words separated by |
		want string // what the notices must hold; after "!", what the error must
	}{
		{"sft|--model|m|--dataset|a|--attn_impl|flash_attn", "notice: --attn_impl has no effect here"},
		{"sft|--dataset|a|--dataloader_pin_memory|true|--dataset_num_proc=8|--dataloader_pin_memory|true", "notice: --dataloader_pin_memory, --dataset_num_proc have no effect here"},
		{"sft|--dataset|a|--deepspeed|zero2", "nothing to distribute"},
		{"sft|--dataset|a|--use_dora|false|--packing|False|--quant_method|none|--loss_scale|default", ""},
		{"sft|--dataset|a|--no_dataset_shuffle", ""},
		{"sft|--dataset|a|--learning-rate=2e-5|--max_steps|-1", ""},
		{"sft|--dataset|a|--lora_rank|8|--dataset|b|c", "notice: --dataset b c takes the place of --dataset a before it"},
		{"sft|--dataset|a|--tuner_type|full|--train_type|lora", "--train_type lora takes the place of --tuner_type full"},
		{"sft|--dataset|a|--strict|true|--strict|true|--init_lora_weights|gaussian", ""},
		{"sft|--dataset|a|--val_dataset|b#5|--val_dataset_shuffle|true", ""},
		{"sft|--task_type|causal_lm|--use_chat_template|true|--agent_template|hermes|--acc_strategy|token|--train_sampler_random|true", ""},
		{"sft|--task_type|seq_cls", "!--task_type seq_cls: known but not supported"},
		{"sft|--group_by_length|true", "!--group_by_length true: known but not supported"},
		{"sft|--train_sampling_strategy|sequential", "!--dataset_shuffle false --train_dataloader_shuffle false"},
		{"infer|--val_dataset|a|--val_dataset_shuffle|true", "!rows are answered in their order"},
		{"sft|--use_dora|true", "!--use_dora true: known but not supported: only LoRA"},
		{"sft|--use_dora", "!known but not supported"},
		{"sft|--dataset|a|--quant_method|bnb|--quant_bits|4|--bnb_4bit_compute_dtype|bfloat16", "--bnb_4bit_compute_dtype has no effect here"},
		{"sft|--packing|true|--packing_length|512", ""},
		{"sft|--lora_rnk|8", "!unknown flag --lora_rnk: did you mean --lora_rank?"},
		{"sft|--gradient_acumulation_step|8", "!did you mean --gradient_accumulation_steps?"},
		{"sft|--xyzzy|8", "!unknown flag --xyzzy: `qlora sft --help`"},
		{"sft|--lora_rnk|8|--use_dora|true", "!unknown flag --lora_rnk"},
		{"sft|--lora_rnk|8|--use_dora|true", "!--use_dora true: known"},
		{"sft|--lora_rank|8|16", "!--lora_rank takes one value, not 2"},
		{"sft|--lora_rank", "!--lora_rank needs a value"},
		{"sft|--lora_rank|x", "!--lora_rank: expected a valid"},
		{"sft|--dataset|a|--learning_rate|nan", "!--learning_rate NaN: must be a finite number"},
		{"infer|--model|m|--temperature|-inf", "!--temperature -Inf: must be a finite number"},
		{"sft|--dataset|a|-lora_rank|8", "!a flag starts with two dashes, --lora_rank"},
		{"sft|--strict|maybe", "!--strict takes true or false"},
		{"sft|--stream|true", "no effect here: the training log needs no generation"},
		{"sft|--json", "!--json is a flag of `qlora export`, not of `qlora sft`"},
		{"sft|--strict|true|run.yaml", "!--strict takes true or false"},
		{"sft|none.yaml", "!no such file"},
		{"sft|a.txt|--dataset|a", "!\"a.txt\" belongs to no flag"},
		{"sft|--dataset|a|--modules_to_save|lm_head", "!vLLM and llama.cpp refuse"},
		{"sft|--dataset|a|--modules_to_save|none", ""},
		{"eval|--eval_dataset|gsm8k", "!give questions with their answers to --dataset"},
		{"eval|--model|m|--dataset|a|--temperature|0|--infer_backend|vllm|--top_p|0.8", "notice: --top_p has no effect here: answers are found by greedy search"},
		{"deploy|--adapters|a", "!deploy: known but not supported: nothing is served here: `qlora infer"},
		{"merge-lora|--adapters|a", ""},
		{"merge_lora|--adapters|a|--lora_rank|8", "!--lora_rank is a flag of `qlora sft`, not of `qlora export`"},
		{"infer|--lora_rank|8", "!--lora_rank is a flag of `qlora sft`, not of `qlora infer`"},
		{"infer|--infer_backend|vllm|--merge_lora|true", "the adapter is applied beside"},
		{"infer|--num_beams|1", ""},
		{"infer|--num_beams|4", "!--num_beams 4: known but not supported"},
		{"infer|--ckpt_dir|x", "!give the checkpoint to --adapters"},
		{"data|--model|m|--dataset|a|b|--row|3|--json", ""},
		{"tune|--model|m", "!unknown verb \"tune\""},
		{"infr", "!did you mean `qlora infer`?"},
		{"", "!what is to be done?"},
	} {
		var words []string
		if c.line != "" {
			words = strings.Split(c.line, "|")
		}
		p, err := parse(words)
		if want, isErr := strings.CutPrefix(c.want, "!"); isErr {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: error %v, want %q", c.line, err, want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", c.line, err)
			continue
		}
		notices := strings.Join(p.notices, "\n")
		if !strings.Contains(notices, c.want) || c.want == "" && notices != "" {
			t.Errorf("%q: notices %q, want %q", c.line, notices, c.want)
		}
	}
}

// The command lines of the article that many users start from, with `swift` replaced.
var (
	articleSFT = []string{"sft", "--model", "M", "--train_type", "lora", "--dataset", "self_cognition.json", "--torch_dtype", "bfloat16",
		"--num_train_epochs", "10", "--per_device_train_batch_size", "1", "--per_device_eval_batch_size", "1", "--learning_rate", "1e-4",
		"--lora_rank", "8", "--lora_alpha", "32", "--target_modules", "all-linear", "--gradient_accumulation_steps", "16",
		"--eval_steps", "50", "--save_steps", "50", "--save_total_limit", "2", "--logging_steps", "5", "--max_length", "2048",
		"--output_dir", "output", "--system", "You are a helpful assistant.", "--warmup_ratio", "0.05", "--dataloader_num_workers", "4",
		"--model_author", "swift", "--model_name", "swift-robot"}
	articleInfer = []string{"infer", "--adapters", "output/v0-20250405-1423/checkpoint-10", "--stream", "true", "--temperature", "0", "--max_new_tokens", "2048"}
)

// command parses a line and returns the struct of its verb.
func command[T any](t *testing.T, words []string) (*T, *parsed) {
	t.Helper()
	p, err := parse(words)
	if err != nil {
		t.Fatalf("%q: %v", words, err)
	}
	return p.command.Selected().Target.Addr().Interface().(*T), p
}

func TestArticle(t *testing.T) {
	sft, p := command[sftCmd](t, articleSFT)
	if sft.Model != "M" || sft.TunerType != "lora" || !slices.Equal(sft.Dataset, []string{"self_cognition.json"}) || sft.TorchDType != "bfloat16" ||
		sft.NumTrainEpochs != 10 || sft.PerDeviceTrainBatchSize != 1 || sft.LearningRate != 1e-4 || sft.LoRARank != 8 || sft.LoRAAlpha != 32 ||
		!slices.Equal(sft.TargetModules, []string{"all-linear"}) || sft.GradientAccumulationSteps != 16 || sft.EvalSteps != 50 || sft.SaveSteps != 50 ||
		sft.SaveTotalLimit != 2 || sft.LoggingSteps != 5 || sft.MaxLength != 2048 || sft.OutputDir != "output" || *sft.System != "You are a helpful assistant." ||
		sft.WarmupRatio != 0.05 || !slices.Equal(sft.ModelAuthor, []string{"swift"}) || !slices.Equal(sft.ModelName, []string{"swift-robot"}) {
		t.Errorf("sft: %+v", sft)
	}
	if len(p.notices) != 1 || sft.DataloaderNumWorkers != 4 {
		t.Errorf("notices %q, want that of per_device_eval_batch_size", p.notices)
	}
	infer, p := command[inferCmd](t, articleInfer)
	if !slices.Equal(infer.Adapters, []string{"output/v0-20250405-1423/checkpoint-10"}) || !*infer.Stream || *infer.Temperature != 0 || infer.MaxNewTokens != 2048 {
		t.Errorf("infer: %+v", infer)
	}
	if len(p.notices) != 0 {
		t.Errorf("notices %q, want none", p.notices)
	}
}

// TestDefaults holds ms-swift's defaults.
func TestDefaults(t *testing.T) {
	c, _ := command[sftCmd](t, []string{"sft", "--dataset", "a"})
	o, err := c.options()
	if err != nil {
		t.Fatal(err)
	}
	if o.Epochs != 3 || o.MaxSteps != 0 || o.StepSamples != 16 || o.LearningRate != 1e-4 || o.WeightDecay != 0.1 || o.LRRatio != 1 ||
		o.Beta1 != 0.9 || o.Beta2 != 0.95 || o.Eps != 1e-8 || o.MaxGradNorm != 1 || o.Schedule != "cosine" || o.WarmupRatio != 0 || o.WarmupSteps != 0 ||
		o.Seed != 42 || o.DataSeed != 42 || !o.Shuffle || !o.DatasetShuffle || o.LoggingSteps != 5 || !o.LoggingFirstStep || o.SaveStrategy != "steps" ||
		o.SaveSteps != 500 || o.SaveTotalLimit != 0 {
		t.Errorf("options %+v", o)
	}
	if c.LoRARank != 8 || c.LoRAAlpha != 32 || c.LoRADropout != 0.05 || c.UseRSLoRA || c.Truncation != "delete" || c.SplitDatasetRatio != 0 || !c.AddVersion ||
		c.Backend != "auto" || c.Strict || c.System != nil {
		t.Errorf("command %+v", c)
	}
	if c.evaluation(0) != "no" || c.evaluation(1) != "steps" || o.EvalSteps != 500 {
		t.Errorf("validation %s without data, %s with, every %d steps", c.evaluation(0), c.evaluation(1), o.EvalSteps)
	}
	c, _ = command[sftCmd](t, []string{"sft", "--dataset", "a", "--per_device_train_batch_size", "5", "--target_modules", "q_proj", "v_proj"})
	if o, err := c.options(); err != nil || o.StepSamples != 20 || !slices.Equal(c.TargetModules, []string{"q_proj", "v_proj"}) {
		t.Errorf("batch size 5: %d samples a step, %v; modules %q", o.StepSamples, err, c.TargetModules)
	}
}

// Below 1 an interval is a share of the run, rounded up, as in transformers.
func TestIntervals(t *testing.T) {
	c, _ := command[sftCmd](t, []string{"sft", "--dataset", "a", "--logging_steps", "0.01", "--save_steps", "0.25", "--max_steps", "30"})
	o, err := c.options()
	if err == nil {
		err = c.intervals(&o, o.TotalSteps(1))
	}
	if err != nil || o.LoggingSteps != 1 || o.SaveSteps != 8 || o.EvalSteps != 8 {
		t.Errorf("every %d, %d and %d steps, %v", o.LoggingSteps, o.SaveSteps, o.EvalSteps, err)
	}
	c, _ = command[sftCmd](t, []string{"sft", "--dataset", "a", "--eval_steps", "1.5"})
	if _, err := c.options(); err == nil || !strings.Contains(err.Error(), "--eval_steps 1.5: a number of steps") {
		t.Error(err)
	}
}

func TestEditDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"abc", "", 3}, {"", "ab", 2}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2}, {"same", "same", 0}, {"modle", "model", 1}, {"abcd", "badc", 2}} {
		if got := editDistance(c.a, c.b); got != c.want {
			t.Errorf("%q to %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
