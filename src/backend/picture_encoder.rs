//! From pixels to files.

use image::{ExtendedColorType, ImageEncoder, RgbImage, codecs};

use super::{EncodedImage, GenerationError, ImageMetadata};
use crate::common::{ImageFormat, OutputConfig};

/// Writes a picture as a file. Only PNG carries the metadata.
///
/// # Errors
/// When the encoder fails.
pub fn encode(picture: &RgbImage, output: OutputConfig, metadata: Option<&ImageMetadata>) -> Result<EncodedImage, GenerationError> {
    let mut bytes = Vec::new();
    let (width, height) = picture.dimensions();
    let failed = |error: image::ImageError| GenerationError::Encoding(error.to_string());
    match output.format {
        ImageFormat::Png => write_png(picture, metadata, &mut bytes).map_err(|error| GenerationError::Encoding(error.to_string()))?,
        ImageFormat::Jpeg => codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, output.quality.clamp(1, 100))
            .write_image(picture, width, height, ExtendedColorType::Rgb8)
            .map_err(failed)?,
        ImageFormat::Webp => codecs::webp::WebPEncoder::new_lossless(&mut bytes)
            .write_image(picture, width, height, ExtendedColorType::Rgb8)
            .map_err(failed)?,
    }
    Ok(EncodedImage { format: output.format, width, height, bytes })
}

fn write_png(picture: &RgbImage, metadata: Option<&ImageMetadata>, bytes: &mut Vec<u8>) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(bytes, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    if let Some(metadata) = metadata {
        let text = metadata.to_a1111();
        // tEXt is Latin-1 only. For other text, Pillow, and so A1111, writes iTXt.
        if text.is_ascii() {
            encoder.add_text_chunk("parameters".to_owned(), text)?;
        } else {
            encoder.add_itxt_chunk("parameters".to_owned(), text)?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.as_raw())?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_can_be_read_back() {
        let rgb = RgbImage::from_fn(16, 8, |x, y| image::Rgb([x as u8 * 16, y as u8 * 32, 99]));
        for (format, lossless) in [(ImageFormat::Png, true), (ImageFormat::Webp, true), (ImageFormat::Jpeg, false)] {
            let file = encode(&rgb, OutputConfig { format, ..OutputConfig::default() }, None).unwrap();
            let back = image::load_from_memory(&file.bytes).unwrap().to_rgb8();
            assert_eq!(back.dimensions(), (16, 8));
            assert!(!lossless || back == rgb, "{format:?}");
        }
    }
}
