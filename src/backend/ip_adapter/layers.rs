//! The cross-attention layers of a UNet, and the numbers that they have in IP-Adapter files.

use std::collections::BTreeMap;

use crate::ops::LayerNames;

/// The maps from image tokens to a layer's keys and values.
const PARTS: [&str; 2] = ["to_k_ip.weight", "to_v_ip.weight"];

/// A layer of a UNet that looks at the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrossAttentionLayer {
    /// Its name, such as `down_blocks.0.attentions.0.transformer_blocks.0.attn2`.
    pub name: String,
    /// Its number in IP-Adapter files: N in `ip_adapter.N.to_k_ip.weight`.
    pub number: usize,
    /// Width of its queries.
    pub channels: usize,
    /// Width of the text.
    pub cross_attention_dim: usize,
}

impl CrossAttentionLayer {
    /// Those of a UNet of these layers, in the order of their numbers.
    #[must_use]
    pub fn all(names: &LayerNames) -> Vec<Self> {
        let layers = names.with_weights().into_iter().filter_map(|layer| {
            let name = layer.name.strip_suffix(".attn2.to_k").map(|block| format!("{block}.attn2"))?;
            let [channels, cross_attention_dim] = layer.shape[..] else { return None };
            Some(Self { name, number: 0, channels, cross_attention_dim })
        });
        let mut layers: Vec<Self> = layers.collect();
        layers.sort_by_cached_key(|layer| order(&layer.name));
        for (place, layer) in layers.iter_mut().enumerate() {
            layer.number = number(place);
        }
        layers
    }

    /// The number that the layer `name` has in IP-Adapter files for a UNet whose cross-attention layers are `all`, in any order.
    #[must_use]
    pub fn number_of<'a>(name: &str, all: impl IntoIterator<Item = &'a str>) -> Option<usize> {
        let (mut has_it, mut before, own) = (false, 0, order(name));
        for other in all {
            has_it |= other == name;
            before += usize::from(order(other) < own);
        }
        has_it.then(|| number(before))
    }
}

/// The number of the layer at this place. Published files count self-attention layers too, each of which stands before a cross-attention
/// layer.
fn number(place: usize) -> usize {
    2 * place + 1
}

/// By which layers are in the order of diffusers' `attn_processors`: on the way down, on the way up, in the middle, and there by the numbers
/// in their names.
fn order(name: &str) -> (usize, Vec<usize>) {
    let rooms = ["down_blocks.", "up_blocks.", "mid_block."];
    let room = rooms.iter().position(|room| name.starts_with(room)).unwrap_or(rooms.len());
    (room, name.split('.').filter_map(|part| part.parse().ok()).collect())
}

/// Width of the queries of each layer that a file of these tensors is for.
///
/// # Errors
/// When a layer is missing, or a tensor is of an unknown kind or does not go with the others.
pub(super) fn channels(shapes: &BTreeMap<String, Vec<usize>>, cross_attention_dim: usize) -> Result<Vec<usize>, String> {
    let mut layers: BTreeMap<usize, [Option<&[usize]>; 2]> = BTreeMap::new();
    for (name, shape) in shapes {
        let Some(rest) = name.strip_prefix("ip_adapter.") else { continue };
        let parsed = rest.split_once('.').and_then(|(number, part)| {
            let number: usize = number.parse().ok().filter(|number| number % 2 == 1)?;
            Some((number, PARTS.iter().position(|known| *known == part)?))
        });
        let Some((number, part)) = parsed else {
            return Err(format!("{name} is not supported: ip_adapter has to_k_ip.weight and to_v_ip.weight of the layers 1, 3, 5, …"));
        };
        layers.entry(number).or_default()[part] = Some(shape);
    }
    if layers.is_empty() {
        return Err("ip_adapter.1.to_k_ip.weight is missing: there is a projection alone".to_owned());
    }
    let last = layers.keys().next_back().copied().unwrap_or_default();
    let mut channels = Vec::with_capacity(layers.len());
    for (place, (found, parts)) in layers.into_iter().enumerate() {
        if found != number(place) {
            return Err(format!("ip_adapter.{}.to_k_ip.weight is missing, and the file has layers up to {last}", number(place)));
        }
        let of_part = |part: usize| -> Result<usize, String> {
            let name = format!("ip_adapter.{found}.{}", PARTS[part]);
            match parts[part] {
                None => Err(format!("{name} is missing")),
                Some([outputs, inputs]) if *outputs > 0 && *inputs == cross_attention_dim => Ok(*outputs),
                Some(shape) => Err(format!("{name} is of the shape {shape:?}, and image tokens are {cross_attention_dim} wide")),
            }
        };
        let (keys, values) = (of_part(0)?, of_part(1)?);
        if keys != values {
            return Err(format!("ip_adapter.{found} makes keys of the width {keys} and values of the width {values}"));
        }
        channels.push(keys);
    }
    Ok(channels)
}

/// # Errors
/// When a file that is for layers of these widths is for another UNet than that of `layers`.
pub(super) fn check(layers: &[CrossAttentionLayer], channels: &[usize], cross_attention_dim: usize) -> Result<(), String> {
    let help = "use an IP-Adapter for this family of models";
    if let Some(layer) = layers.iter().find(|layer| layer.cross_attention_dim != cross_attention_dim) {
        let expected = layer.cross_attention_dim;
        return Err(format!("image tokens are {cross_attention_dim} wide, and the model looks at a text {expected} wide; {help}"));
    }
    if layers.len() != channels.len() {
        return Err(format!("it is for {} layers of cross-attention, and the model has {}; {help}", channels.len(), layers.len()));
    }
    match layers.iter().zip(channels).find(|(layer, channels)| layer.channels != **channels) {
        None => Ok(()),
        Some((CrossAttentionLayer { name, number, channels, .. }, found)) => {
            Err(format!("ip_adapter.{number} is for a layer {found} wide, and {name} is {channels} wide; {help}"))
        }
    }
}
