//! The hires fix of `txt2img`: pictures that are enlarged and drawn again.

use super::{Flag, MULTIPLE, PictureRequest, STRENGTH};
use crate::{
    backend::{LatentFilter, ModelInfo, UpscalerLibrary},
    common::{ImageSize, InvalidValue, NegativePrompt, RedrawSettings, UpscaleScale, UpscaleSettings},
    http::{sdapi::NONE, wire::Bounded},
};

impl PictureRequest {
    /// How the pictures are enlarged and drawn again, if the request asks for it.
    pub(super) fn hires_fix(&self, info: &ModelInfo) -> Result<Option<UpscaleSettings>, InvalidValue> {
        if !self.has_hires_fix() {
            return Ok(None);
        }
        let name = match self.hr_upscaler.as_deref().filter(|name| !name.is_empty()) {
            None => LatentFilter::ALL[0].name,
            // A1111 scales by it what no upscaler has made as large as it should be.
            Some(NONE) => UpscalerLibrary::FILTERS[0],
            Some(name) => name,
        };
        let scale = self.hr_scale.map(UpscaleScale::try_from).transpose().map_err(|error| InvalidValue { name: "hr_scale", ..error })?;
        let steps = self.hr_second_pass_steps.map(Bounded::get).filter(|steps| *steps > 0).map(TryInto::try_into).transpose()?;
        let redraw = RedrawSettings {
            strength: self.denoising_strength.map_or_else(|| STRENGTH.try_into(), Ok)?,
            steps,
            size: self.hires_size(info)?,
            sampler: self.hr_sampler_name,
            schedule: self.hr_scheduler,
        };
        // A1111's own scale, whatever the network's is.
        let scale = scale.map_or_else(|| 2.0.try_into(), Ok)?;
        Ok(Some(UpscaleSettings { name: name.to_owned(), scale: Some(scale), redraw: Some(redraw) }))
    }

    /// Whether the request asks for it.
    pub(super) fn has_hires_fix(&self) -> bool {
        self.enable_hr.is_some_and(Flag::get)
    }

    /// The names of fields that are not followed where the request asks for it. `img2img` follows none of them.
    pub(super) fn hires_without_effect(&self, begins_with_picture: bool) -> impl Iterator<Item = String> + use<> {
        let is_other = |own: Option<&str>, other: &Option<String>| {
            self.has_hires_fix() && other.as_ref().is_some_and(|other| !other.is_empty() && Some(other.as_str()) != own)
        };
        [
            ("enable_hr", begins_with_picture && self.has_hires_fix()),
            ("hr_prompt", is_other(self.prompt.as_deref(), &self.hr_prompt)),
            ("hr_negative_prompt", is_other(self.negative_prompt.as_ref().map(NegativePrompt::as_str), &self.hr_negative_prompt)),
        ]
        .into_iter()
        .filter(|(_, is_other)| *is_other)
        .map(|(name, _)| name.to_owned())
    }

    /// The size that is asked for; of one side alone, in the proportions of the first picture.
    fn hires_size(&self, info: &ModelInfo) -> Result<Option<ImageSize>, InvalidValue> {
        let side = |side: Option<Bounded<0, { super::MAX_SIDE }>>| side.map_or(0, Bounded::get);
        let own = info.default_size(None);
        let [width, height] = [(self.width, own.width()), (self.height, own.height())].map(|(given, own)| match side(given) {
            0 => i64::from(own),
            given => given,
        });
        let (width, height) = match (side(self.hr_resize_x), side(self.hr_resize_y)) {
            (0, 0) => return Ok(None),
            (x, 0) => (x, x * height / width),
            (0, y) => (y * width / height, y),
            both => both,
        };
        let multiple = MULTIPLE.max(info.size_multiple.into());
        let [width, height] = [width, height].map(|side| (side / multiple * multiple) as u32);
        ImageSize::new(width, height).map(Some).map_err(|error| InvalidValue { name: "hr_resize_x", ..error })
    }
}
