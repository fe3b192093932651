//! Pictures through a network, and to a size.

use candle_core::{DType, Device, Error};
use image::{RgbImage, imageops};

use crate::{
    backend::{GenerationError, image_utils},
    models::{Interrupt, StripBytes, Upscaler},
    ops,
};

/// A picture of `scale` times the sides of this one; none where a number of the network's is NaN or infinite.
///
/// # Errors
/// When the device fails, there is no memory, or the pass is interrupted.
pub(super) fn enlarge(
    network: &Upscaler,
    scale: usize,
    picture: &RgbImage,
    device: &Device,
    interrupt: Interrupt,
) -> Result<Option<RgbImage>, GenerationError> {
    let (width, height) = (picture.width() as usize * scale, picture.height() as usize * scale);
    let length = 3 * width * height;
    let mut pixels: Vec<u8> = Vec::new();
    pixels.try_reserve_exact(length).map_err(|_| GenerationError::OutOfMemory(no_room(length)))?;
    let room = 2 * size_of::<f32>() as u64 * picture.as_raw().len() as u64;
    let input = ops::with_room(room, || image_utils::to_unit_tensor(picture, device))??;
    let mut are_numbers = true;
    network.forward(&input, StripBytes::default(), interrupt, |rows| {
        let room = 3 * size_of::<f32>() as u64 * rows.elem_count() as u64;
        let values = || rows.get(0)?.permute((1, 2, 0))?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let values = ops::with_room(room, values)??;
        are_numbers &= values.iter().all(|value| value.is_finite());
        pixels.extend(values.iter().map(|value| (value.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8));
        Ok(())
    })?;
    if !are_numbers {
        return Ok(None);
    }
    let picture = RgbImage::from_raw(width as u32, height as u32, pixels);
    picture.map(Some).ok_or_else(|| GenerationError::Encoding(format!("an upscaler made a picture of another size than {width}x{height}")))
}

fn no_room(bytes: usize) -> Error {
    Error::Msg(format!("out of memory: there is no room for {bytes} bytes"))
}

/// The picture at a size.
///
/// # Errors
/// When there is no memory for it.
pub(super) fn resize(picture: &RgbImage, (width, height): (u32, u32), filter: imageops::FilterType) -> Result<RgbImage, GenerationError> {
    // Between its two passes, the filter holds a picture of f32 with four channels.
    let between = u64::from(picture.width().max(width)) * u64::from(picture.height().max(height));
    Ok(ops::with_room(between * 4 * size_of::<f32>() as u64, || imageops::resize(picture, width, height, filter))?)
}
