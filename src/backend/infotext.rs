//! The parameters of a picture as text in its PNG file, in the form of
//! [A1111](https://github.com/AUTOMATIC1111/stable-diffusion-webui/blob/master/modules/infotext_utils.py), which many tools read.

mod reader;

pub use reader::read_infotext;

use super::{ChosenControl, ChosenUpscale, Order, OrderAdapters, Redraw};
use crate::common::{ControlScale, ControlSettings, Decoder, ImageSize, NamedLora, SamplingConfig, Schedule};

/// What the negative prompt's line begins with.
const NEGATIVE: &str = "Negative prompt:";

/// The parameters of one picture.
#[derive(Debug, Clone)]
pub struct ImageMetadata<'a> {
    prompt: &'a str,
    adapters: &'a OrderAdapters,
    negative_prompt: &'a str,
    config: SamplingConfig,
    enlarged_to: Option<ImageSize>,
    controls: &'a [ChosenControl],
    references: &'a [ControlScale],
    decoder: Decoder,
    upscale: Option<&'a ChosenUpscale>,
    redraw: Option<&'a Redraw>,
    /// Whether the picture was drawn, and not only enlarged.
    is_drawn: bool,
    model_id: &'a str,
}

impl<'a> ImageMetadata<'a> {
    /// The metadata of a picture of the model `model_id`.
    #[must_use]
    pub fn new(order: &'a Order, model_id: &'a str) -> Self {
        Self {
            prompt: order.prompt.as_str(),
            adapters: &order.adapters,
            negative_prompt: order.negative_prompt.as_str(),
            config: order.config,
            enlarged_to: order.output.enlarged_to,
            controls: &order.controls,
            references: &order.references,
            decoder: order.decoder,
            upscale: order.upscale.as_ref(),
            redraw: order.redraw.as_deref(),
            is_drawn: order.is_drawn(),
            model_id,
        }
    }

    /// The prompts, and a line of names and values.
    #[must_use]
    pub fn to_a1111(&self) -> String {
        if !self.is_drawn {
            return written(self.upscale_values()).join(", ");
        }
        let [prompt, negative] = [self.prompt, self.negative_prompt].map(without_marks);
        let negative = if negative.is_empty() { negative } else { format!("{NEGATIVE} {negative}\n") };
        let mut values = written(self.values());
        values.extend(self.lora_hashes());
        values.extend(self.controls.iter().enumerate().map(|(i, control)| format!("ControlNet {i}: {}", quoted(&unit(&control.settings)))));
        let scales: Vec<String> = self.references.iter().map(|scale| scale.get().to_string()).collect();
        values.extend((!scales.is_empty()).then(|| format!("IP-Adapter scale: {}", quoted(&scales.join(", ")))));
        format!("{prompt}{}\n{negative}{}", self.lora_tags(), values.join(", "))
    }

    /// LoRAs that the prompt does not name, as it would name them.
    fn lora_tags(&self) -> String {
        // A tag cannot hold every name that a file can have.
        let can_be_read = |lora: &&NamedLora| !lora.name.contains(['<', '>', ':']) && !lora.name.contains(char::is_control);
        self.adapters.listed.iter().filter(can_be_read).map(ToString::to_string).collect()
    }

    /// A1111's names and short hashes of the LoRAs, quoted in its way.
    fn lora_hashes(&self) -> Option<String> {
        let hashes: Vec<String> =
            self.adapters.chosen.iter().filter_map(|adapter| Some(format!("{}: {}", adapter.name(), adapter.hash()?))).collect();
        (!hashes.is_empty()).then(|| format!("Lora hashes: {}", serde_json::json!(hashes.join(", "))))
    }

    /// The words of A1111's tab for other people's pictures.
    fn upscale_values(&self) -> [Value; 3] {
        [
            ("Postprocess upscale by", self.upscale.map(|upscale| upscale.scale.to_string())),
            ("Postprocess upscaler", self.upscale.map(|upscale| upscale.upscaler.name().to_owned())),
            ("Version", Some(concat!("sd-worker ", env!("CARGO_PKG_VERSION")).to_owned())),
        ]
    }

    fn values(&self) -> Vec<Value> {
        let SamplingConfig { size, steps, guidance_scale, seed, sampler, schedule, options } = self.config;
        let strength = options.strength.or(self.redraw.map(|redraw| redraw.strength));
        let interval = options.guidance_interval.map(|interval| {
            let [start, stop] = interval.into();
            format!("{start}-{stop}")
        });
        let drawing = [
            ("Steps", Some(steps.to_string())),
            ("Sampler", Some(sampler.a1111_name().to_owned())),
            (
                "Schedule type",
                Some(schedule).filter(|schedule| *schedule != Schedule::Default).map(|schedule| schedule.a1111_name().to_owned()),
            ),
            ("CFG scale", Some(guidance_scale.to_string())),
            ("Eta", options.eta.map(|eta| eta.get().to_string())),
            ("CFG Rescale", options.guidance_rescale.map(|share| share.get().to_string())),
            ("CFG Interval", interval),
            ("Feature cache", options.cache.map(|cache| cache.to_string().replace(',', " "))),
            ("Zero SNR", options.zero_snr.map(|zero_snr| zero_snr.to_string())),
            ("Clip skip", options.clip_skip.map(|skip| skip.to_string())),
            ("Denoising strength", strength.map(|strength| strength.get().to_string())),
            ("Seed", Some(seed.to_string())),
            ("Size", Some(size.to_string())),
        ];
        let networks =
            [("Model", Some(self.model_id.to_owned())), ("VAE Decoder", (self.decoder == Decoder::Tiny).then(|| "TAESD".to_owned()))];
        drawing.into_iter().chain(self.hires_values()).chain(networks).chain(self.upscale_values()).collect()
    }

    /// The words of A1111's hires fix.
    fn hires_values(&self) -> Vec<Value> {
        let Some(redraw) = self.redraw else {
            let values =
                self.enlarged_to.map(|size| [("Hires resize", Some(size.to_string())), ("Hires upscaler", Some("Lanczos".to_owned()))]);
            return values.into_iter().flatten().collect();
        };
        let Redraw { enlarger, scale, strength, steps, order } = redraw;
        let SamplingConfig { size, sampler, schedule, .. } = order.config;
        // What was drawn smaller than the request asks for is no base for a factor.
        let scale = scale.filter(|_| self.enlarged_to.is_none());
        let is_other = (sampler, schedule) != (self.config.sampler, self.config.schedule);
        vec![
            // That of the first picture, which begins with one of the client's, is the plain one.
            ("Hires denoising strength", self.config.options.strength.map(|_| strength.get().to_string())),
            ("Hires upscale", scale.map(|scale| scale.to_string())),
            ("Hires resize", if scale.is_none() { Some(size.to_string()) } else { None }),
            ("Hires steps", Some(steps.to_string())),
            ("Hires upscaler", Some(enlarger.name().to_owned())),
            ("Hires sampler", is_other.then(|| sampler.a1111_name().to_owned())),
            ("Hires schedule type", is_other.then(|| schedule.a1111_name().to_owned())),
        ]
    }
}

/// A prompt without the negative prompt's mark: what follows it would be read as that. To the model, the words are the same.
fn without_marks(prompt: &str) -> String {
    prompt.replace(NEGATIVE, "Negative prompt :")
}

/// A name with its value, if there is one.
type Value = (&'static str, Option<String>);

/// Those that there are, as text.
fn written(values: impl IntoIterator<Item = Value>) -> Vec<String> {
    values.into_iter().filter_map(|(name, value)| Some(format!("{name}: {}", quoted(&value?)))).collect()
}

/// A control network in the words of A1111's extension for them.
fn unit(settings: &ControlSettings) -> String {
    let ControlSettings { name, scale, window, guess_mode, preprocess, kind } = settings;
    let mode = if *guess_mode { "ControlNet is more important" } else { "Balanced" };
    let kind = kind.map_or(String::new(), |kind| format!(", Union Control Type: {}", kind.name()));
    format!(
        "Module: {preprocess}, Model: {name}, Weight: {}, Resize Mode: Crop and Resize, Guidance Start: {}, Guidance End: {}, Control Mode: {mode}{kind}",
        scale.get(),
        window.start(),
        window.end()
    )
}

/// A value that reads as one value: as it is, or quoted as a JSON string. Commas and colons are escaped too, since not every reader knows
/// quotes.
fn quoted(value: &str) -> String {
    let is_plain = value == value.trim() && !value.starts_with('"') && !value.contains([',', ':']) && !value.contains(char::is_control);
    if is_plain { value.to_owned() } else { serde_json::json!(value).to_string().replace(',', "\\u002c").replace(':', "\\u003a") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::common::{Sampler, SamplingOptions};

    fn text(model_id: &str) -> String {
        let config = SamplingConfig {
            size: ImageSize::new(64, 128).unwrap(),
            steps: "7".parse().unwrap(),
            guidance_scale: "4.5".parse().unwrap(),
            seed: 3.into(),
            sampler: Sampler::EulerAncestral,
            schedule: Schedule::Karras,
            options: SamplingOptions { eta: Some("0.5".parse().unwrap()), ..SamplingOptions::default() },
        };
        let adapters = &OrderAdapters::default();
        ImageMetadata {
            prompt: "a fox: red,\nold",
            adapters,
            negative_prompt: "Seed: 5, dogs",
            config,
            enlarged_to: None,
            controls: &[],
            references: &[],
            decoder: Decoder::Full,
            upscale: None,
            redraw: None,
            is_drawn: true,
            model_id,
        }
        .to_a1111()
    }

    fn check(model: &str) {
        let text = text(model);
        assert_eq!(text.lines().count(), 4, "{text}");
        let pairs = read_infotext(&text);
        assert_eq!(pairs["Model"], model, "{text}");
        let rest = [("Steps", "7"), ("CFG scale", "4.5"), ("Seed", "3"), ("Size", "64x128"), ("Eta", "0.5")];
        for (name, value) in rest.into_iter().chain([("Sampler", "Euler a"), ("Schedule type", "Karras")]) {
            assert_eq!(pairs[name], value, "{text}");
        }
        assert_eq!((pairs["Prompt"].as_str(), pairs["Negative prompt"].as_str()), ("a fox: red,\nold", "Seed: 5, dogs"), "{text}");
        // Both prompts and sides count.
        assert_eq!(pairs.len(), rest.len() + 8, "{text}");
        // Those that know of no quotes take the same apart at commas.
        assert_eq!(text.lines().last().unwrap().split(',').filter(|pair| pair.split(':').count() == 2).count(), rest.len() + 4, "{text}");
    }

    #[test]
    fn nothing_in_a_prompt_is_read_as_the_negative_prompt() {
        for (prompt, written) in [
            ("a\nb\n", "a\nb\n"),
            ("a\nNegative prompt: b\nc, Negative prompt:", "a\nNegative prompt : b\nc, Negative prompt :"),
            ("Steps: 5, Sampler: x, Size: 8x8, Seed: 1\nb", "Steps: 5, Sampler: x, Size: 8x8, Seed: 1\nb"),
        ] {
            assert_eq!(without_marks(prompt), written);
            let read = read_infotext(&format!("{written}\nNegative prompt: dogs\nSteps: 7, Seed: 3, Size: 64x64"));
            assert_eq!((read["Prompt"].as_str(), read["Negative prompt"].as_str()), (written, "dogs"));
        }
    }

    #[test]
    fn a_model_s_name_writes_no_other_field() {
        for name in [
            "plain",
            "owner/name",
            "asdf, CFG scale: 12, Seed: 99, x",
            "two\nlines",
            "two\r\nSteps: 9, Sampler: x, Seed: 1",
            "\"Seed",
            " x ",
        ] {
            check(name);
        }
        assert!(text("plain").contains(", Model: plain, Version: sd-worker "));
        assert!(text("a, b").contains(r#", Model: "a\u002c b", "#));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_its_name(name in "(?s).{1,40}|[,:\"\\\\ \n\u{85}a]{1,12}") {
            check(&name);
        }
    }
}
