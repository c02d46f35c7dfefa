package main

// trainingFlags is what becomes of every flag of ms-swift's `sft` and `infer`, 3.0 to 4.6, and of
// the transformers training arguments they include. The rows of class works name fields of the
// command structs, which hold their types, defaults and help.
var trainingFlags = []flagGroup{
	{class: works, verbs: "sft infer", names: `
		model template system torch_dtype max_length seed adapters val_dataset columns model_name model_author
		quant_method quant_bits bnb_4bit_quant_type bnb_4bit_use_double_quant`},
	{class: works, verbs: "sft", names: `
		dataset split_dataset_ratio dataset_shuffle val_dataset_shuffle train_dataloader_shuffle data_seed truncation_strategy strict loss_scale
		lazy_tokenize dataloader_num_workers packing packing_length packing_strategy
		tuner_type target_modules target_regex lora_rank lora_alpha lora_dropout use_rslora lorap_lr_ratio
		num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps
		learning_rate lr_scheduler_type warmup_ratio warmup_steps weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm
		neftune_noise_alpha label_smoothing_factor
		output_dir add_version resume_from_checkpoint logging_steps logging_first_step eval_strategy eval_steps save_strategy
		save_steps save_total_limit init_weights metric_for_best_model greater_is_better early_stop_interval create_checkpoint_symlink report_to`},
	{class: works, verbs: "infer", names: `
		load_args stream max_new_tokens temperature top_k top_p repetition_penalty stop_words result_path val_dataset_sample
		max_batch_size`},

	// What is settled here in one way, which needs no flag.
	{class: noEffect, verbs: "sft infer", why: "samples are read and packed in the training process", names: `
		dataloader_prefetch_factor dataloader_persistent_workers dataloader_pin_memory
		dataloader_multiprocessing_context dataloader_in_order dataset_num_proc packing_num_proc load_from_cache_file
		enable_cache packing_cache download_mode remove_unused_columns load_dataset_config
		disable_auto_column_mapping accelerator_config eval_do_concat_batches eval_accumulation_steps
		length_column_name padding_side`},
	{class: noEffect, verbs: "sft", why: "validation is packed into as few rows as fit", names: `per_device_eval_batch_size`},
	{class: noEffect, verbs: "sft infer", why: "attention has one implementation, which never builds a T x T matrix and keeps packed samples apart", names: `
		attn_impl padding_free use_liger_kernel liger_kernel_config use_logits_to_keep experts_impl enable_npu_model_patch`},
	{class: noEffect, verbs: "sft infer", why: "one process uses one device; there is nothing to distribute", names: `
		deepspeed deepspeed_autotp_size zero_hpz_partition_size ds3_gather_for_generation fsdp fsdp_config fsdp_num
		fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap ddp_backend ddp_timeout ddp_find_unused_parameters
		ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph local_rank save_on_each_node log_on_each_node
		average_tokens_across_devices parallelism_config mp_parameters use_ray ray_exp_name ray_scope device_groups
		log_level_replica eval_use_gather_object`},
	{class: noEffect, verbs: "sft infer", why: "--backend chooses the device", names: `
		device_map max_memory no_cuda use_cpu use_mps_device use_ipex tpu_num_cores tpu_metrics_debug`},
	{class: noEffect, verbs: "sft infer", why: "arithmetic is fixed: storage by --torch_dtype, sums in float32", names: `
		bf16 tf32 fp16_opt_level half_precision_backend fp16_backend bf16_full_eval bnb_4bit_compute_dtype bnb_4bit_quant_storage lora_dtype`},
	{class: noEffect, verbs: "sft infer", why: "kernels are compiled ahead and memory is planned before the first step", names: `
		torch_compile torch_compile_backend torch_compile_mode torchdynamo jit_mode_eval gradient_checkpointing
		gradient_checkpointing_kwargs vit_gradient_checkpointing activation_checkpointing activation_checkpointing_kwargs
		torch_empty_cache_steps auto_find_batch_size acc_steps use_cache skip_memory_metrics fp16_full_eval`},
	{class: noEffect, verbs: "sft infer", why: "runs are deterministic already, and a value that is not finite ends them before it reaches a weight", names: `
		full_determinism logging_nan_inf_filter`},
	{class: noEffect, verbs: "sft infer", why: "the model is recognised by its config.json or GGUF metadata", names: `
		model_type check_model is_encoder_decoder model_kwargs past_index label_names`},
	{class: noEffect, verbs: "sft infer", why: "the network is not used; models are read from disk or from the local hub caches", names: `
		use_hf hub_token hub_strategy hub_private_repo hub_always_push hub_model_id hub_revision push_to_hub_model_id
		push_to_hub_organization push_to_hub_token local_repo_path`},
	{class: noEffect, verbs: "sft infer", why: "the model is not a vision, audio or mixture-of-experts model", names: `
		max_pixels norm_bbox freeze_vit freeze_aligner vit_lr aligner_lr router_aux_loss_coef vision_batch_size`},
	{class: noEffect, verbs: "sft infer", why: "it belongs to another training method", names: `
		lora_ga_batch_size lora_ga_iters lora_ga_max_length lora_ga_direction lora_ga_scale lora_ga_stable_gamma
		fourier_n_frequency fourier_scaling boft_block_size boft_block_num boft_n_butterfly_factor boft_dropout
		vera_rank vera_projection_prng_key vera_dropout vera_d_initial adapter_act adapter_length
		galore_target_modules galore_rank galore_update_proj_gap galore_scale galore_proj_type galore_optim_per_parameter
		galore_with_embedding galore_quantization galore_proj_quant galore_proj_bits galore_proj_group_size
		galore_cos_threshold galore_gamma_proj galore_queue_size galore_config
		adalora_target_r adalora_init_r adalora_tinit adalora_tfinal adalora_deltaT adalora_beta1 adalora_beta2
		adalora_orth_reg_weight llamapro_num_new_blocks llamapro_num_groups lisa_step_interval reft_layer_key reft_layers
		reft_rank reft_intervention_type reft_args model_layer_cls_name
		chord_sft_dataset chord_sft_per_device_train_batch_size chord_enable_phi_function chord_mu_warmup_steps
		chord_mu_decay_steps chord_mu_peak chord_mu_valley num_labels problem_type mrl_dims reranker_use_activation
		decision_drop_instructions decision_subsample_options decision_state_as_text decision_shuffle_fields
		hqq_axis tuner_backend`},
	{class: noEffect, verbs: "sft infer", why: "progress goes to the terminal, every figure to logging.jsonl, and to runs/ for TensorBoard", names: `
		log_level logging_strategy logging_dir run_name project disable_tqdm include_tokens_per_second
		include_num_input_tokens_seen include_for_metrics include_inputs_for_metrics debug prediction_loss_only
		batch_eval_metrics use_legacy_prediction_loop do_train do_eval do_predict eval_metric
		swanlab_token swanlab_project swanlab_workspace swanlab_exp_name swanlab_mode swanlab_notification_method
		swanlab_webhook_url swanlab_secret swanlab_sender_email swanlab_receiver_email swanlab_smtp_server
		swanlab_smtp_port swanlab_email_language swanlab_lark_webhook_url swanlab_lark_secret
		trackio_space_id trackio_bucket_id trackio_static_space_id metric_warmup_step`},
	{class: noEffect, verbs: "sft infer", why: "adapters are one safetensors file, and every checkpoint can be resumed", names: `
		max_shard_size save_safetensors safe_serialization use_flash_ckpt enable_jit_checkpoint
		restore_callback_states_from_checkpoint overwrite_output_dir`},
	{class: noEffect, verbs: "sft infer", why: "the template is that of the model, or --template; thinking has no part in it", names: `
		template_backend enable_thinking preserve_thinking add_non_thinking_prefix
		disable_ignore_empty_think is_binary_loss_scale`},
	{class: noEffect, verbs: "sft infer", why: "errors in flags are never ignored", names: `ignore_args_error`},
	{class: noEffect, verbs: "sft", why: "the training log needs no generation; `qlora infer` and `qlora eval` take it", names: `
		max_new_tokens temperature top_k top_p repetition_penalty stop_words stream logprobs top_logprobs
		num_beams generation_max_length generation_num_beams generation_config eval_generation_config
		eval_dataset_args extra_eval_args eval_limit max_model_len structured_outputs_regex cached_val_dataset response_prefix
		load_data_args`},
	{class: noEffect, verbs: "infer", why: "nothing is trained", names: `
		split_dataset_ratio dataset_shuffle data_seed truncation_strategy strict tuner_type lazy_tokenize
		dataloader_num_workers packing
		packing_length packing_strategy loss_scale interleave_prob stopping_strategy shuffle_buffer_size streaming
		cached_dataset cached_val_dataset load_data_args`},
	{class: noEffect, verbs: "infer", why: "the adapter is applied beside the frozen weights, with the result that merging gives", names: `
		merge_lora use_merge_kit instruct_model instruct_model_revision`},
	{class: noEffect, verbs: "infer", why: "inference runs in this process, by its own engine", names: `
		infer_backend tp session_len cache_max_entry_count quant_policy gpu_memory_utilization tensor_parallel_size
		pipeline_parallel_size max_num_seqs max_model_len disable_custom_all_reduce enforce_eager limit_mm_per_prompt
		use_async_engine data_parallel_size enable_prefix_caching write_batch_size writer_buffer_size
		vllm_gpu_memory_utilization vllm_tensor_parallel_size vllm_pipeline_parallel_size vllm_enable_expert_parallel
		vllm_max_num_seqs vllm_max_model_len vllm_disable_custom_all_reduce vllm_enforce_eager vllm_limit_mm_per_prompt
		vllm_max_lora_rank vllm_enable_prefix_caching vllm_use_async_engine vllm_quantization vllm_reasoning_parser
		vllm_disable_cascade_attn vllm_mm_processor_cache_gb vllm_speculative_config vllm_engine_kwargs
		vllm_data_parallel_size
		sglang_tp_size sglang_pp_size sglang_dp_size sglang_ep_size sglang_enable_ep_moe sglang_mem_fraction_static
		sglang_context_length sglang_disable_cuda_graph sglang_quantization sglang_kv_cache_dtype
		sglang_enable_dp_attention sglang_disable_custom_all_reduce sglang_speculative_algorithm
		sglang_speculative_num_steps sglang_speculative_eagle_topk sglang_speculative_num_draft_tokens
		lmdeploy_tp lmdeploy_session_len lmdeploy_cache_max_entry_count lmdeploy_quant_policy lmdeploy_vision_batch_size`},

	// What would change the result, and is not here.
	{class: unsupported, verbs: "sft infer", off: disabled, why: "float16 overflows in training: use --torch_dtype bfloat16", names: `fp16`},
	{class: unsupported, verbs: "sft infer", off: disabled, why: "the rope of config.json is used: change it there", names: `rope_scaling`},
	{class: unsupported, verbs: "sft infer", off: disabled, why: "give --model the folder of that revision", names: `model_revision`},
	{class: unsupported, verbs: "sft infer", off: disabled, why: "Python is not run: convert the data with your script first, and pass the result to --dataset", names: `
		external_plugins custom_dataset_info`},
	{class: unsupported, verbs: "sft infer", off: disabled, why: "the vocabulary is fixed: spell the marker in ordinary text", names: `new_special_tokens init_strategy`},
	{class: unsupported, verbs: "sft infer", off: disabled, why: "adapters are PEFT LoRA: leave it out", names: `use_swift_lora`},
	{class: unsupported, verbs: "sft infer", off: append([]string{"causal_lm"}, disabled...), why: "models are trained and asked as language models", names: `task_type`},
	{class: unsupported, verbs: "sft infer", off: []string{"true", "null", "none"}, why: "conversations are written by a template: use --template", names: `use_chat_template`},
	{class: unsupported, verbs: "sft infer", off: append([]string{"hermes"}, disabled...), why: "tools are written as Qwen2.5's own template does it: leave it out", names: `agent_template tools_prompt`},
	{class: unsupported, verbs: "infer", off: disabled, why: "rows are answered in their order: write the ones you want into a file", names: `val_dataset_shuffle`},
	{class: unsupported, verbs: "infer", off: disabled, why: "give the checkpoint to --adapters", names: `ckpt_dir`},
	{class: unsupported, verbs: "infer", off: disabled, why: "give the rows to answer to --val_dataset", names: `dataset`},
	{class: unsupported, verbs: "infer", off: append([]string{"1"}, disabled...), why: "search is greedy or by sampling: use --temperature, --top_k and --top_p", names: `num_beams`},
	{class: unsupported, verbs: "infer", off: disabled, why: "`qlora eval` gives negative log-likelihoods", names: `logprobs top_logprobs`},
	{class: unsupported, verbs: "infer", off: disabled, why: "use `qlora eval --dataset`", names: `metric`},
	{class: unsupported, verbs: "infer", off: disabled, why: "say in the prompt, or in --system, what the answer is to begin with or look like", names: `
		response_prefix structured_outputs_regex`},

	{class: unsupported, verbs: "sft", off: disabled, why: "only LoRA on linear layers is trained: use --target_modules or --target_regex to choose them, and --lora_rank for capacity", names: `
		use_dora target_parameters freeze_parameters freeze_parameters_ratio freeze_parameters_regex
		trainable_parameters trainable_parameters_regex freeze_llm use_galore lisa_activated_layers`},
	{class: unsupported, verbs: "sft", off: disabled, why: "LoRA trains A and B alone: leave it out", names: `lora_bias`},
	{class: unsupported, verbs: "sft", off: disabled, why: "it would train whole modules beside A and B, and vLLM and llama.cpp refuse such adapters: adapt linear layers by --target_modules, and raise --lora_rank", names: `modules_to_save`},
	{class: unsupported, verbs: "sft", off: []string{"adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw"}, why: "the optimizer is AdamW: leave it out", names: `optim`},
	{class: unsupported, verbs: "sft", off: disabled, why: "the optimizer is AdamW: set --learning_rate, --adam_beta1, --adam_beta2, --adam_epsilon and --weight_decay", names: `
		optimizer optim_args optim_target_modules adafactor`},
	{class: unsupported, verbs: "sft", off: disabled, why: "use --lr_scheduler_type cosine, linear or constant, with --warmup_ratio", names: `lr_scheduler_kwargs`},
	{class: unsupported, verbs: "sft", off: append([]string{"cross_entropy"}, disabled...), why: "the loss is cross entropy", names: `
		loss_type enable_dft_loss enable_channel_loss channels sft_alpha`},
	{class: unsupported, verbs: "sft", off: append([]string{"1"}, disabled...), why: "one device holds the whole sequence: lower --max_length", names: `sequence_parallel_size tp_size`},
	{class: unsupported, verbs: "infer", off: append([]string{"1"}, disabled...), why: "one device holds the whole sequence: lower --max_length", names: `sequence_parallel_size`},
	{class: unsupported, verbs: "sft", off: append([]string{"first_exhausted", "1000"}, disabled...), why: "datasets are read whole, one after the other: write the mixture into one file", names: `
		streaming shuffle_buffer_size interleave_prob stopping_strategy cached_dataset train_dataset_sample`},
	{class: unsupported, verbs: "sft", off: disabled, why: "steps are made of rows as they come, and packed: leave it out", names: `group_by_length sortish_sampler`},
	{class: unsupported, verbs: "sft", off: []string{"true", "random"}, why: "to keep the order of rows say --dataset_shuffle false --train_dataloader_shuffle false", names: `
		train_sampling_strategy train_sampler_random`},
	{class: unsupported, verbs: "sft", off: []string{"token"}, why: "accuracy is counted by tokens: `qlora eval` counts whole answers", names: `acc_strategy`},
	{class: unsupported, verbs: "sft", off: disabled, why: "set --num_train_epochs or --max_steps", names: `max_epochs`},
	{class: unsupported, verbs: "sft", off: disabled, why: "a last, smaller step is trained on too: make the data a multiple of the step", names: `dataloader_drop_last`},
	{class: unsupported, verbs: "sft", off: disabled, why: "validation runs every --eval_steps", names: `eval_delay eval_on_start`},
	{class: unsupported, verbs: "sft", off: disabled, why: "run `qlora eval` on the checkpoints", names: `
		eval_use_evalscope eval_dataset predict_with_generate metric callbacks`},
	{class: unsupported, verbs: "sft", off: disabled, why: "trainer_state.json names the best checkpoint: give it to --adapters", names: `
		load_best_model_at_end`},
	{class: unsupported, verbs: "sft", off: disabled, why: "a checkpoint is small, and whole: leave it out", names: `save_only_model`},
	{class: unsupported, verbs: "sft", off: disabled, why: "to go on from the weights alone, give the checkpoint to --adapters", names: `resume_only_model ignore_data_skip`},
	{class: unsupported, verbs: "sft", off: disabled, why: "give the checkpoint to --adapters or --resume_from_checkpoint", names: `ckpt_dir load_args`},
	{class: unsupported, verbs: "sft", off: disabled, why: "batch sizes are --per_device_train_batch_size and --per_device_eval_batch_size", names: `
		per_gpu_train_batch_size per_gpu_eval_batch_size`},
	{class: unsupported, verbs: "sft", off: disabled, why: "nothing is uploaded: copy the checkpoint folder", names: `push_to_hub`},
}
