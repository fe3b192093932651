//! From pixels to files.

use image::{ExtendedColorType, ImageEncoder, RgbImage, codecs::jpeg::JpegEncoder};
use img_parts::{Bytes, ImageEXIF, webp::WebP};

use super::{EncodedImage, GenerationError, ImageMetadata, exif};
use crate::common::{ImageFormat, OutputConfig};

/// The most bytes of EXIF data in a JPEG file: a segment has 16 bits for its length.
const MAX_JPEG_EXIF: usize = (1 << 16) - 16;

/// Writes a picture as a file, with its metadata as A1111 writes it: text in a PNG file, EXIF data in others.
///
/// # Errors
/// When the encoder fails.
pub fn encode(picture: &RgbImage, output: OutputConfig, metadata: Option<&ImageMetadata>) -> Result<EncodedImage, GenerationError> {
    let (width, height) = picture.dimensions();
    let text = metadata.map(ImageMetadata::to_a1111);
    let exif = || exif::with_comment(text.as_deref()?);
    let bytes = match output.format {
        ImageFormat::Png => write_png(picture, text.as_deref()).map_err(failed)?,
        ImageFormat::Jpeg => write_jpeg(picture, output.quality, exif().filter(|exif| exif.len() <= MAX_JPEG_EXIF))?,
        ImageFormat::Webp => write_webp(picture, output.quality, exif())?,
    };
    Ok(EncodedImage { format: output.format, width, height, bytes })
}

/// A warning if a file of this format has no room for the metadata.
pub(super) fn missing_metadata(format: ImageFormat, metadata: &ImageMetadata) -> Option<&'static str> {
    let has_room = || exif::with_comment(&metadata.to_a1111()).is_some_and(|exif| exif.len() <= MAX_JPEG_EXIF);
    (format == ImageFormat::Jpeg && !has_room()).then_some("the prompts are too long for a JPEG file, which says nothing of its parameters")
}

fn failed(error: impl std::fmt::Display) -> GenerationError {
    GenerationError::Encoding(error.to_string())
}

fn write_png(picture: &RgbImage, text: Option<&str>) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    if let Some(text) = text {
        // tEXt is Latin-1 only. For other text, Pillow, and so A1111, writes iTXt.
        if text.is_ascii() {
            encoder.add_text_chunk("parameters".to_owned(), text.to_owned())?;
        } else {
            encoder.add_itxt_chunk("parameters".to_owned(), text.to_owned())?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}

fn write_jpeg(picture: &RgbImage, quality: u8, exif: Option<Vec<u8>>) -> Result<Vec<u8>, GenerationError> {
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, quality.clamp(1, 100));
    if let Some(exif) = exif {
        encoder.set_exif_metadata(exif).map_err(failed)?;
    }
    encoder.write_image(picture, picture.width(), picture.height(), ExtendedColorType::Rgb8).map_err(failed)?;
    Ok(bytes)
}

fn write_webp(picture: &RgbImage, quality: u8, exif: Option<Vec<u8>>) -> Result<Vec<u8>, GenerationError> {
    let encoder = webp::Encoder::from_rgb(picture, picture.width(), picture.height());
    let bytes = encoder.encode_simple(false, quality.min(100).into()).map_err(|error| failed(format_args!("{error:?}")))?;
    let Some(exif) = exif else { return Ok(bytes.to_vec()) };
    let mut file = WebP::from_bytes(Bytes::copy_from_slice(&bytes)).map_err(failed)?;
    file.set_exif(Some(exif.into()));
    let mut bytes = Vec::new();
    file.encoder().write_to(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_can_be_read_back() {
        let rgb = RgbImage::from_fn(16, 8, |x, y| image::Rgb([x as u8 * 16, y as u8 * 32, 99]));
        for format in [ImageFormat::Png, ImageFormat::Webp, ImageFormat::Jpeg] {
            let file = encode(&rgb, OutputConfig { format, ..OutputConfig::default() }, None).unwrap();
            let back = image::load_from_memory(&file.bytes).unwrap().to_rgb8();
            assert_eq!(back.dimensions(), (16, 8));
            assert!(format != ImageFormat::Png || back == rgb, "{format:?}");
        }
    }

    #[test]
    fn quality_costs_bytes() {
        let noise = RgbImage::from_fn(64, 64, |x, y| image::Rgb([(x * y) as u8, (x * 7 + y * y) as u8, (x ^ y) as u8]));
        for format in [ImageFormat::Webp, ImageFormat::Jpeg] {
            let size = |quality| encode(&noise, OutputConfig { format, quality, ..OutputConfig::default() }, None).unwrap().bytes.len();
            assert!(size(20) < size(60) && size(60) < size(100), "{format:?}");
        }
    }
}
