"""Arguments of transformers 4's `TrainingArguments` that release 5 has renamed or removed."""

from __future__ import annotations

RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_token": "hub_token",
    "push_to_hub_model_id": "hub_model_id",
    "torchdynamo": "torch_compile_backend",
    "xpu_backend": "ddp_backend",
}
"""Old name -> the name in transformers 5."""

WITHOUT_EFFECT = (
    "overwrite_output_dir", "logging_dir", "save_safetensors", "use_mps_device", "jit_mode_eval", "use_ipex",
    "fp16_opt_level", "half_precision_backend", "fp16_backend", "tpu_num_cores", "tpu_metrics_debug", "past_index",
    "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap", "use_legacy_prediction_loop",
    "push_to_hub_organization", "mp_parameters", "ray_scope", "include_tokens_per_second",
    "sharded_ddp",
)  # fmt: skip
"""Arguments of transformers 4 that release 5 has removed."""

WHAT_TO_DO = {
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "save_safetensors": "files are always safetensors",
    "sharded_ddp": "set fsdp",
    "fsdp_min_num_params": "set min_num_params in fsdp_config",
    "fsdp_transformer_layer_cls_to_wrap": "set transformer_layer_cls_to_wrap in fsdp_config",
    "push_to_hub_organization": "write the organization into hub_model_id",
}
