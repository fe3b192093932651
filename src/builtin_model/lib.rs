//! The model inside the binary: a small but complete Stable Diffusion, so that the first command makes a picture without a download.

/// Names files of the folder `model`, each with its bytes, which are those of a crate of its own after `in`.
macro_rules! files {
    ($($path:literal $(in $bytes:path)?),* $(,)?) => { [$(($path, files!(bytes $path $($bytes)?))),*] };
    (bytes $path:literal) => { include_bytes!(concat!("model/", $path)).as_slice() };
    (bytes $path:literal $bytes:path) => { $bytes };
}

/// The model's files, in the layout of diffusers' `save_pretrained`.
pub static FILES: &[(&str, &[u8])] = &files!(
    "LICENSES.md",
    "generation_config.json",
    "known_words.json",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json" in sd_worker_model_unet::CONFIG,
    "unet/diffusion_pytorch_model.safetensors" in sd_worker_model_unet::WEIGHTS,
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
);

/// `LoRA` files for the model.
pub static LORAS: &[(&str, &[u8])] = &files!("loras/ink.safetensors");

/// Networks that enlarge the model's pictures.
pub static UPSCALERS: &[(&str, &[u8])] = &files!("upscalers/crisp.safetensors");

/// Tensors that diffusers computes on the way to a small picture, as safetensors; made by `tests/parity/make_selfcheck_goldens.py`.
pub static GOLDENS: &[u8] = include_bytes!("goldens.safetensors");
