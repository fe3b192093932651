//! What an adapter file says of itself, in its header and by its shapes.

use super::{AdaptedNetwork, Module, hash, tag_counts};
use crate::{backend::model_files::TensorFiles, common::ModelFamily};

/// The longest text of an entry; longer ones are cut.
const MAX_CHARS: usize = 4096;
/// The longest name.
const MAX_NAME_CHARS: usize = 256;

/// What an adapter file says of itself. Texts are those of the file's author, cut to 4096 characters; names to 256.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AdapterInfo {
    /// The name under which it was trained, `ss_output_name`.
    pub alias: Option<String>,
    /// The model that it was trained on, in the file's words: `sdxl_base_v1-0`, `stable-diffusion-v1/lora`.
    pub base: Option<String>,
    /// The family of models that it is for: by the file's words or, where there are none, by the widths of the text that it looks at.
    pub family: Option<ModelFamily>,
    /// The smallest and the largest rank; `None` if nothing has a rank.
    pub ranks: Option<(usize, usize)>,
    /// The smallest and the largest alpha; `None` if there are none.
    pub alphas: Option<(f64, f64)>,
    /// The words that call for it, as its author gives them.
    pub trigger_phrase: Option<String>,
    /// The most frequent tags of its training pictures with their counts, the most frequent first; at most 24.
    pub tags: Vec<(String, u64)>,
    /// Its title.
    pub title: Option<String>,
    /// Its author.
    pub author: Option<String>,
    /// Its description.
    pub description: Option<String>,
    /// The size of its training pictures, in the file's words: `1024x1024`, `(512, 512)`.
    pub resolution: Option<String>,
    /// The program's part that trained it: `networks.lora`, `lycoris.kohya`.
    pub network_module: Option<String>,
    /// The hash of its tensors, 12 hexadecimal digits, if the header has it. See
    /// [`AdapterEntry::short_hash`](super::AdapterEntry::short_hash).
    pub short_hash: Option<String>,
}

pub(super) fn read(files: &TensorFiles, modules: &[Module]) -> AdapterInfo {
    let entry = |key: &str, most: usize| files.metadata(key).and_then(|text| cleaned(text, most));
    let text = |key: &str| entry(key, MAX_CHARS);
    let name = |key: &str| entry(key, MAX_NAME_CHARS);
    let base = name("ss_base_model_version").or_else(|| name("modelspec.architecture"));
    let is_v2 = name("ss_v2").is_some_and(|text| text.eq_ignore_ascii_case("true"));
    let said = base.as_deref().map_or(is_v2.then_some(ModelFamily::Sd2), family_of_name);
    AdapterInfo {
        alias: name("ss_output_name"),
        // Other families have names too: their widths are no hint.
        family: if said.is_none() && base.is_none() { family_of_modules(modules) } else { said },
        base,
        ranks: extremes(modules.iter().filter_map(Module::rank), usize::cmp),
        alphas: extremes(modules.iter().filter_map(Module::alpha), f64::total_cmp),
        trigger_phrase: text("modelspec.trigger_phrase"),
        tags: files.metadata("ss_tag_frequency").map(tag_counts::most_frequent).unwrap_or_default(),
        title: name("modelspec.title"),
        author: name("modelspec.author"),
        description: text("modelspec.description"),
        resolution: name("modelspec.resolution").or_else(|| name("ss_resolution")),
        network_module: name("ss_network_module"),
        short_hash: files.metadata("sshs_model_hash").and_then(short_hash),
    }
}

/// An entry without what surrounds it, cut. `None` if nothing is left, as in kohya's `None` for values that are not set.
fn cleaned(text: &str, most: usize) -> Option<String> {
    let text: String = text.trim().chars().filter(|c| !c.is_control() || *c == '\n').take(most).collect();
    if text.is_empty() || text == "None" { None } else { Some(text) }
}

/// kohya's hash of the tensors, as in [`hash`].
fn short_hash(text: &str) -> Option<String> {
    let digits = text.get(..hash::SHORT)?.to_ascii_lowercase();
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(digits)
}

fn extremes<T: Copy>(values: impl Iterator<Item = T> + Clone, order: fn(&T, &T) -> std::cmp::Ordering) -> Option<(T, T)> {
    Some((values.clone().min_by(order)?, values.max_by(order)?))
}

/// kohya's versions are `sd_v1`, `sd_v2` and `sdxl_base_v1-0`; those of modelspec are `stable-diffusion-v1`, `stable-diffusion-v2-768-v` and
/// `stable-diffusion-xl-v1-base`, all with `/lora` behind them.
fn family_of_name(name: &str) -> Option<ModelFamily> {
    let name = name.to_ascii_lowercase();
    let begins = |beginnings: &[&str]| beginnings.iter().any(|beginning| name.starts_with(beginning));
    match () {
        () if begins(&["sdxl", "sd_xl", "stable-diffusion-xl"]) => Some(ModelFamily::Sdxl),
        () if begins(&["sd_v1", "sd_1", "sd1", "sd15", "sd v1", "stable-diffusion-v1"]) => Some(ModelFamily::Sd1),
        () if begins(&["sd_v2", "sd_2", "sd2", "sd v2", "stable-diffusion-v2"]) => Some(ModelFamily::Sd2),
        () => None,
    }
}

/// The family by the text encoders, and by the width of the text that the denoiser looks at.
fn family_of_modules(modules: &[Module]) -> Option<ModelFamily> {
    if modules.iter().any(|module| module.network() == AdaptedNetwork::TextEncoder(1)) {
        return Some(ModelFamily::Sdxl);
    }
    let width = |module: &Module| module.shape().and_then(|shape| shape.get(1).copied());
    let looks_at_text = |layer: &str| layer.contains("attn2") && ["to_k", "to_v"].iter().any(|end| layer.ends_with(end));
    let denoiser = modules.iter().filter(|module| module.network() == AdaptedNetwork::Denoiser);
    let of_text = denoiser.filter(|module| looks_at_text(module.layer())).find_map(width);
    let of_encoder = || {
        let encoders = modules.iter().filter(|module| module.network() == AdaptedNetwork::TextEncoder(0));
        // CLIP-L is in Stable Diffusion 1 and in XL.
        encoders.filter(|module| module.layer().ends_with("q_proj")).find_map(width).filter(|width| *width == 1024)
    };
    match of_text.or_else(of_encoder)? {
        768 => Some(ModelFamily::Sd1),
        1024 => Some(ModelFamily::Sd2),
        2048 => Some(ModelFamily::Sdxl),
        _ => None,
    }
}
