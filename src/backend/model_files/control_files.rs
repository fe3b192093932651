//! The files of a ControlNet or a T2I-Adapter: a directory in diffusers' layout, or a file in diffusers' names or in those of the first
//! programs.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device};
use serde_json::{Map, Value, json};

use super::{
    ModelFiles, NO_PICKLES, PartWeights,
    architectures::LAYERS_PER_BLOCK,
    is_pickle, ldm_names,
    tensor_files::{Locate, TensorFiles},
};
use crate::backend::LoadError;

/// The network of these files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend) enum ControlNetworkKind {
    ControlNet,
    T2IAdapter,
}

/// A ControlNet or a T2I-Adapter, as files.
#[derive(Debug)]
pub(in crate::backend) struct ControlFiles {
    path: PathBuf,
    files: Arc<TensorFiles>,
    kind: ControlNetworkKind,
    names: Names,
    /// `config.json` and where it is, if there is one.
    config: Option<(PathBuf, Vec<u8>)>,
}

/// The naming of the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    Diffusers,
    /// A ControlNet in the names of Stable Diffusion's first checkpoints, below a prefix.
    Ldm(&'static str),
    /// A T2I-Adapter whose residual blocks are numbered through all levels.
    Numbered,
}

/// Files that are no such network, by a part of the names of their tensors.
const REFUSED: [(&str, &str); 5] = [
    ("lora_controlnet", "a Control-LoRA, which is not supported"),
    ("lllite_", "a ControlNet-LLLite, which is not supported"),
    ("ip_adapter.", "an IP-Adapter, which is for --ip-adapter"),
    ("lora_", "a LoRA, which is for --loras"),
    ("controlnet_x_embedder", "a ControlNet of another family than Stable Diffusion"),
];
/// The prefix of a ControlNet's tensors in its first files, which may have a whole model beside it.
const CONTROL_MODEL: &str = "control_model.";
/// More layers than any network has.
const MAX_LAYERS: usize = 256;
/// The halvings on a picture's way to the resolution of latents.
const HALVINGS: usize = 3;

impl ControlFiles {
    /// Opens a directory or a file.
    ///
    /// # Errors
    /// When there is none, or it is no such network.
    pub(in crate::backend) fn open(path: &Path) -> Result<Self, LoadError> {
        if path.is_dir() {
            return Self::of_directory(path);
        }
        if !path.is_file() {
            return Err(LoadError::NotFound(format!("there is no ControlNet {}: a directory or a .safetensors file", path.display())));
        }
        let bad = |reason: String| LoadError::BadConfig { path: path.to_owned(), reason };
        if is_pickle(path) {
            return Err(bad(NO_PICKLES.to_owned()));
        }
        let files = TensorFiles::open(&[path.to_owned()]).map_err(|(path, source)| LoadError::BadWeights { path, source })?;
        let (kind, names) = recognise(&files).map_err(bad)?;
        Ok(Self { path: path.to_owned(), files, kind, names, config: None })
    }

    fn of_directory(path: &Path) -> Result<Self, LoadError> {
        const PART: &str = "controlnet";
        let directory = ModelFiles::of_part(path);
        let name = format!("{PART}/config.json");
        let config = directory.read(&name)?.into_owned();
        let class_name = directory.class_name(&name)?;
        let kind = match class_name.as_str() {
            "ControlNetModel" | "ControlNetUnionModel" => ControlNetworkKind::ControlNet,
            "T2IAdapter" => ControlNetworkKind::T2IAdapter,
            other => {
                let reason = format!("its _class_name is \"{other}\", and should be ControlNetModel or T2IAdapter");
                return Err(LoadError::BadConfig { path: directory.path(&name), reason });
            }
        };
        let (path, files) = directory.part_files(PART)?;
        Ok(Self { path, files, kind, names: Names::Diffusers, config: Some((directory.path(&name), config)) })
    }

    /// The file that says how the network is built.
    pub(in crate::backend) fn config_path(&self) -> &Path {
        self.config.as_ref().map_or(&self.path, |(path, _)| path)
    }

    pub(in crate::backend) fn kind(&self) -> ControlNetworkKind {
        self.kind
    }

    /// Number of all tensors' elements.
    pub(in crate::backend) fn elements(&self) -> usize {
        self.files.names().filter_map(|name| Some(self.files.shape(&name)?.iter().product::<usize>())).sum()
    }

    /// `config.json`. A file alone has none: it follows from the shapes of its tensors, and from `unet`, the configuration of the model that
    /// it is for.
    pub(in crate::backend) fn config(&self, unet: &[u8]) -> Vec<u8> {
        let made = match (&self.config, self.kind) {
            (Some((_, config)), _) => return config.clone(),
            (None, ControlNetworkKind::ControlNet) => self.controlnet(serde_json::from_slice(unet).unwrap_or_default()),
            (None, ControlNetworkKind::T2IAdapter) => self.t2i_adapter(),
        };
        Value::Object(made).to_string().into_bytes()
    }

    /// The weights.
    pub(in crate::backend) fn weights(&self, dtype: DType, device: &Device) -> PartWeights {
        let locate = self.locate();
        let vb = self.files.reader(dtype, device, Arc::clone(&locate));
        let needless = match self.names {
            // A whole model beside it.
            Names::Ldm(prefix) => self.files.names().filter(|name| !name.starts_with(prefix)).collect(),
            Names::Diffusers | Names::Numbered => Vec::new(),
        };
        PartWeights { path: self.path.clone(), vb, files: Arc::clone(&self.files), locate, owner: "its configuration", needless }
    }

    fn locate(&self) -> Locate {
        match self.names {
            Names::Diffusers => Arc::new(|name| name.to_owned().into()),
            Names::Ldm(prefix) => Arc::new(move |name| format!("{prefix}{}", ldm_names::controlnet(name)).into()),
            Names::Numbered => Arc::new(|name| ldm_names::t2i_adapter(name).into()),
        }
    }

    /// The shape of a tensor by its name in diffusers.
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.files.shape(&self.locate()(name).name).map(<[usize]>::to_vec)
    }

    /// The number of the tensors that have these names, from 0 on.
    fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..MAX_LAYERS).take_while(|i| self.shape(&name(*i)).is_some()).count()
    }

    fn controlnet(&self, mut config: Map<String, Value>) -> Map<String, Value> {
        let first = |name: &str, dim: usize| self.shape(name).and_then(|shape| shape.get(dim).copied());
        let depth = |prefix: String| self.count(|k| format!("{prefix}.transformer_blocks.{k}.norm1.weight"));
        let levels = config.get("down_block_types").and_then(Value::as_array).map_or(0, Vec::len);
        let layers = |level: usize| (0..LAYERS_PER_BLOCK).map(move |layer| format!("down_blocks.{level}.attentions.{layer}"));
        let mut depths: Vec<Vec<usize>> = (0..levels).map(|level| layers(level).map(depth).collect()).collect();
        let kinds: Vec<&str> = depths
            .iter()
            .map(|depths| if depths.iter().any(|depth| *depth > 0) { "CrossAttnDownBlock2D" } else { "DownBlock2D" })
            .collect();
        let middle = depth("mid_block.attentions.0".to_owned());
        config.insert("down_block_types".to_owned(), json!(kinds));
        config.insert("mid_block_type".to_owned(), json!(if middle > 0 { "UNetMidBlock2DCrossAttn" } else { "UNetMidBlock2D" }));
        if let Some(coarsest) = depths.last_mut().filter(|depths| depths.iter().all(|depth| *depth == 0)) {
            // diffusers gives the middle as many as the coarsest level, even if that level itself has none.
            coarsest.fill(middle);
        }
        config.insert("transformer_layers_per_block".to_owned(), json!(depths));
        config.insert("in_channels".to_owned(), json!(first("conv_in.weight", 1)));
        // A model that is distilled for guidance is steered by the ControlNets of the model that it was made of.
        config.remove("time_cond_proj_dim");
        let hint = "controlnet_cond_embedding";
        let channels = (0..HALVINGS)
            .map(|i| first(&format!("{hint}.blocks.{}.weight", 2 * i), 0))
            .chain([first(&format!("{hint}.conv_out.weight"), 1)]);
        config.insert("conditioning_embedding_out_channels".to_owned(), json!(channels.flatten().collect::<Vec<_>>()));
        config.insert("conditioning_channels".to_owned(), json!(first(&format!("{hint}.conv_in.weight"), 1)));
        // As in A1111, only the name tells.
        let is_shuffle = self.path.file_stem().is_some_and(|name| name.to_string_lossy().to_lowercase().contains("shuffle"));
        config.insert("global_pool_conditions".to_owned(), json!(is_shuffle));
        if let Some([kinds, channels]) = self.shape("task_embedding").as_deref() {
            let layers = self.count(|i| format!("transformer_layes.{i}.ln_1.weight"));
            let union = [
                ("num_control_type", *kinds),
                ("num_trans_channel", *channels),
                ("num_trans_layer", layers),
                ("num_proj_channel", first("spatial_ch_projs.weight", 0).unwrap_or_default()),
            ];
            config.extend(union.map(|(name, value)| (name.to_owned(), json!(value))));
        }
        config
    }

    fn t2i_adapter(&self) -> Map<String, Value> {
        let dim = |name: String, dim: usize| self.shape(&name).and_then(|shape| shape.get(dim).copied());
        let is_light = self.shape("adapter.body.0.out_conv.weight").is_some();
        let output = |level: usize| {
            let (layer, side) = if is_light { ("out_conv", 0) } else { ("resnets.0.block1", 0) };
            dim(format!("adapter.body.{level}.{layer}.weight"), side)
        };
        let mut channels: Vec<usize> = (0..MAX_LAYERS).map_while(output).collect();
        if is_light {
            // The last level has the channels of the one before.
            channels.pop();
        }
        let pixels = dim(format!("adapter.{}.weight", if is_light { "body.0.in_conv" } else { "conv_in" }), 1).unwrap_or_default();
        let (in_channels, factor) = match pixels {
            64 => (1, 8),
            256 => (1, 16),
            768 => (3, 16),
            _ => (3, 8),
        };
        let blocks = match self.names {
            // Without the levels in the names, their number is that of all such files.
            Names::Numbered => ldm_names::T2I_BLOCKS,
            _ => self.count(|i| format!("adapter.body.0.resnets.{i}.block1.weight")),
        };
        let kind = match (is_light, factor) {
            (true, _) => "light_adapter",
            (false, 16) => "full_adapter_xl",
            (false, _) => "full_adapter",
        };
        let config = json!({
            "adapter_type": kind, "in_channels": in_channels, "channels": channels, "num_res_blocks": blocks, "downscale_factor": factor
        });
        if let Value::Object(config) = config { config } else { Map::new() }
    }
}

/// The network of a file, and the naming of its tensors.
fn recognise(files: &TensorFiles) -> Result<(ControlNetworkKind, Names), String> {
    let names: BTreeSet<String> = files.names().collect();
    if let Some((_, what)) = REFUSED.iter().find(|(part, _)| names.iter().any(|name| name.contains(part))) {
        return Err(format!("this is {what}"));
    }
    let has = |name: &str| names.contains(name);
    if has("controlnet_cond_embedding.conv_in.weight") {
        return Ok((ControlNetworkKind::ControlNet, Names::Diffusers));
    }
    if let Some(prefix) = [CONTROL_MODEL, ""].into_iter().find(|prefix| has(&format!("{prefix}input_hint_block.0.weight"))) {
        return Ok((ControlNetworkKind::ControlNet, Names::Ldm(prefix)));
    }
    if ["adapter.conv_in.weight", "adapter.body.0.in_conv.weight"].into_iter().any(has) {
        return Ok((ControlNetworkKind::T2IAdapter, Names::Diffusers));
    }
    if has("conv_in.weight") && has("body.0.block1.weight") {
        return Ok((ControlNetworkKind::T2IAdapter, Names::Numbered));
    }
    let first: Vec<&str> = names.iter().take(3).map(String::as_str).collect();
    Err(format!("this is no ControlNet and no T2I-Adapter that is known here: its tensors are {}, …", first.join(", ")))
}
