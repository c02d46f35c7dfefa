package main

import (
	"slices"
	"strings"
)

// flagTable is what becomes of every flag of ms-swift's `sft`, `infer`, `eval` and `export`. It makes
// the errors and notices of the command line, and docs/flags.md.
var flagTable = slices.Concat(trainingFlags, inherit("eval", "infer", evalFlags), exportFlags)

// inherit returns the rows of a verb: its own, and those of another verb for the flags that they leave
// out. In ms-swift the arguments of eval are derived from those of infer.
func inherit(verb, from string, own []flagGroup) []flagGroup {
	settled := map[string]bool{}
	for _, g := range own {
		for name := range strings.FieldsSeq(g.names) {
			settled[name] = true
		}
	}
	all := slices.Clone(own)
	for _, g := range trainingFlags {
		if g.class == works || !slices.Contains(strings.Fields(g.verbs), from) {
			continue
		}
		names := slices.DeleteFunc(strings.Fields(g.names), func(name string) bool { return settled[name] })
		g.verbs, g.names = verb, strings.Join(names, " ")
		all = append(all, g)
	}
	return all
}

// evalFlags are the flags of `eval` whose fate is not that of `infer`.
var evalFlags = []flagGroup{
	{class: works, verbs: "eval", names: `
		model template system torch_dtype adapters dataset model_name model_author max_length truncation_strategy strict
		columns max_new_tokens max_batch_size quant_method quant_bits bnb_4bit_quant_type bnb_4bit_use_double_quant`},
	{class: noEffect, verbs: "eval", why: "the model runs in this process and nothing is served", names: `
		host port api_key ssl_keyfile ssl_certfile owned_by served_model_name log_interval max_logprobs verbose eval_num_proc
		eval_backend`},
	{class: noEffect, verbs: "eval", why: "answers are found by greedy search, which draws nothing", names: `seed top_k top_p`},
	{class: noEffect, verbs: "eval", why: "the report goes to standard output, with --json as an object and with --answers every answer", names: `
		stream eval_output_dir result_path`},
	{class: noEffect, verbs: "eval", why: "exact answers and the likelihood are measured, always both", names: `metric`},
	{class: noEffect, verbs: "eval", why: "benchmarks are not run", names: `eval_dataset_args dataset_args extra_eval_args local_dataset`},
	{class: unsupported, verbs: "eval", off: disabled, why: "benchmarks are not run: give questions with their answers to --dataset", names: `eval_dataset`},
	{class: unsupported, verbs: "eval", off: disabled, why: "give the rows to --dataset", names: `val_dataset`},
	{class: unsupported, verbs: "eval", off: disabled, why: "give --dataset the rows that count", names: `eval_limit val_dataset_sample`},
	{class: unsupported, verbs: "eval", off: disabled, why: "the model runs in this process: give --model or --adapters", names: `eval_url`},
	{class: unsupported, verbs: "eval", off: append([]string{"1", "1.0"}, disabled...), why: "answers are found by greedy search: use `qlora infer` for others", names: `
		temperature repetition_penalty eval_generation_config stop_words`},
	{class: unsupported, verbs: "eval", off: []string{"true"}, why: "an adapter's args.json gives what the flags leave out: give --model, --template and --system", names: `load_args`},
}

// exportFlags are the flags of `export`, whose arguments are derived in ms-swift from those of both training and inference.
var exportFlags = []flagGroup{
	{class: works, verbs: "export", names: `
		model template system torch_dtype adapters merge_lora output_dir max_shard_size to_ollama to_peft_format to_hf
		quant_method quant_bits bnb_4bit_use_double_quant`},
	{class: noEffect, verbs: "export", why: "models are written as safetensors", names: `safe_serialization`},
	{class: noEffect, verbs: "export", why: "nothing is calibrated, so no data is read", names: `
		dataset val_dataset columns data_seed dataset_num_proc dataset_shuffle val_dataset_shuffle split_dataset_ratio download_mode
		disable_auto_column_mapping enable_cache interleave_prob lazy_tokenize load_data_args load_dataset_config load_from_cache_file
		loss_scale is_binary_loss_scale model_author model_name packing packing_cache packing_length packing_num_proc packing_strategy
		padding_free padding_side quant_batch_size quant_n_samples group_size remove_unused_columns shuffle_buffer_size
		stopping_strategy streaming strict truncation_strategy max_length max_pixels norm_bbox cached_val_dataset seed
		decision_drop_instructions decision_shuffle_fields decision_state_as_text decision_subsample_options`},
	{class: noEffect, verbs: "export", why: "nothing is generated: a Modelfile takes its settings from the model's generation_config.json", names: `
		temperature top_k top_p repetition_penalty max_new_tokens num_beams stop_words stream logprobs top_logprobs
		structured_outputs_regex max_model_len response_prefix`},
	{class: noEffect, verbs: "export", why: "the model is recognised by its config.json or GGUF metadata", names: `
		model_type task_type use_chat_template model_kwargs num_labels problem_type`},
	{class: noEffect, verbs: "export", why: "the template is that of the model, or --template; thinking and agent formats have no part in it", names: `
		template_backend template_mode agent_template tools_prompt enable_thinking preserve_thinking add_non_thinking_prefix
		disable_ignore_empty_think`},
	{class: noEffect, verbs: "export", why: "one process reads files and writes files", names: `
		attn_impl experts_impl enable_npu_model_patch sequence_parallel_size device_map max_memory ddp_backend ddp_timeout device_groups
		ray_exp_name use_ray tuner_backend tuner_type train_type thread_count test_convert_precision test_convert_dtype
		save_missing_weights hqq_axis bnb_4bit_compute_dtype bnb_4bit_quant_storage bnb_4bit_quant_type`},
	{class: noEffect, verbs: "export", why: "the network is not used; models are read from disk or from the local hub caches", names: `
		use_hf hub_token hub_model_id hub_private_repo commit_message local_repo_path`},
	{class: noEffect, verbs: "export", why: "errors in flags are never ignored", names: `ignore_args_error`},
	{class: unsupported, verbs: "export", off: disabled, why: "nothing is uploaded: copy the folder", names: `push_to_hub`},
	{class: unsupported, verbs: "export", off: disabled, why: "a target that exists is never replaced: choose another --output_dir", names: `exist_ok`},
	{class: unsupported, verbs: "export", off: disabled, why: "give the checkpoint to --adapters", names: `ckpt_dir`},
	{class: unsupported, verbs: "export", off: disabled, why: "--to_ollama true writes the GGUF itself, or names the base .gguf that --model gives", names: `gguf_file`},
	{class: unsupported, verbs: "export", off: disabled, why: "give --model the folder of that revision", names: `model_revision`},
	{class: unsupported, verbs: "export", off: disabled, why: "Megatron's format is not written", names: `to_mcore mcore_model mcore_adapter mcore_adapters`},
	{class: unsupported, verbs: "export", off: disabled, why: "datasets are read as they are: `qlora data` shows what they become", names: `to_cached_dataset cached_dataset`},
	{class: unsupported, verbs: "export", off: disabled, why: "the rope of config.json is used: change it there", names: `rope_scaling`},
	{class: unsupported, verbs: "export", off: disabled, why: "Python is not run", names: `external_plugins custom_dataset_info custom_register_path`},
	{class: unsupported, verbs: "export", off: disabled, why: "the vocabulary is fixed", names: `new_special_tokens init_strategy`},
	{class: unsupported, verbs: "export", off: disabled, why: "adapters are PEFT LoRA: leave it out", names: `use_swift_lora`},
	{class: unsupported, verbs: "export", off: disabled, why: "use --merge_lora", names: `use_merge_kit instruct_model instruct_model_revision`},
	{class: unsupported, verbs: "export", off: []string{"true"}, why: "an adapter's args.json gives what the flags leave out: give --model, --template and --system", names: `load_args`},
	{class: unsupported, verbs: "export", off: disabled, why: "use --adapters", names: `lora_modules`},
}
