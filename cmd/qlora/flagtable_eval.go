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

// exportFlags are the flags of `export`, which is no verb here.
var exportFlags = []flagGroup{
	{class: unsupported, verbs: "export", why: otherVerbs["export"], names: `
		adapters add_non_thinking_prefix agent_template attn_impl bnb_4bit_compute_dtype bnb_4bit_quant_storage
		bnb_4bit_quant_type bnb_4bit_use_double_quant cached_dataset cached_val_dataset ckpt_dir columns commit_message
		custom_dataset_info custom_register_path data_seed decision_drop_instructions decision_shuffle_fields
		decision_state_as_text decision_subsample_options dataset dataset_num_proc dataset_shuffle ddp_backend
		ddp_timeout device_groups device_map disable_auto_column_mapping disable_ignore_empty_think download_mode
		enable_cache enable_npu_model_patch enable_thinking exist_ok experts_impl external_plugins gguf_file group_size
		hqq_axis hub_model_id hub_private_repo hub_token ignore_args_error init_strategy instruct_model
		instruct_model_revision interleave_prob is_binary_loss_scale lazy_tokenize load_args load_data_args
		load_dataset_config load_from_cache_file local_repo_path logprobs lora_modules loss_scale max_length max_memory
		max_model_len max_new_tokens max_pixels max_shard_size mcore_adapter mcore_adapters mcore_model merge_lora model
		model_author model_kwargs model_name model_revision model_type new_special_tokens norm_bbox num_beams num_labels
		output_dir packing packing_cache packing_length packing_num_proc packing_strategy padding_free padding_side
		preserve_thinking problem_type push_to_hub quant_batch_size quant_bits quant_method quant_n_samples ray_exp_name
		remove_unused_columns repetition_penalty response_prefix rope_scaling safe_serialization save_missing_weights
		seed sequence_parallel_size shuffle_buffer_size split_dataset_ratio stop_words stopping_strategy stream
		streaming strict structured_outputs_regex system task_type temperature template template_backend template_mode
		test_convert_dtype test_convert_precision thread_count to_cached_dataset to_hf to_mcore to_ollama to_peft_format
		tools_prompt top_k top_logprobs top_p torch_dtype train_type truncation_strategy tuner_backend tuner_type
		use_chat_template use_hf use_merge_kit use_ray use_swift_lora val_dataset val_dataset_shuffle`},
}
