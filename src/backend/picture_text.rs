//! What a stranger's file says of how its picture was made: the text that A1111 writes.

use std::io::Cursor;

use image::{ImageDecoder, ImageReader};

use super::{ImageFile, exif, picture_decoder};

/// The most bytes of a text. Compressed ones are read no further.
const MAX_TEXT: usize = 1 << 20;
/// What A1111 calls its text in a PNG file.
const PARAMETERS: &str = "parameters";

impl ImageFile {
    /// The text, if there is one.
    #[must_use]
    pub fn parameters(&self) -> Option<String> {
        let (bytes, format) = self.contents();
        let text = picture_decoder::guarded(|| {
            Ok(match format {
                image::ImageFormat::Png => png_text(bytes),
                other => {
                    let decoder = ImageReader::with_format(Cursor::new(bytes), other).into_decoder().ok();
                    decoder.and_then(|mut decoder| decoder.exif_metadata().ok()?).and_then(exif::comment)
                }
            })
        });
        text.ok().flatten()
    }
}

/// The texts before the pixels; A1111 writes there.
fn png_text(bytes: &[u8]) -> Option<String> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_limits(png::Limits { bytes: bytes.len() + MAX_TEXT });
    let reader = decoder.read_info().ok()?;
    let info = reader.info();
    let plain = || info.uncompressed_latin1_text.iter().find(|text| text.keyword == PARAMETERS).map(|text| text.text.clone());
    let unicode = || {
        let mut text = info.utf8_text.iter().find(|text| text.keyword == PARAMETERS)?.clone();
        text.decompress_text_with_limit(MAX_TEXT).ok()?;
        text.get_text().ok()
    };
    let compressed = || {
        let mut text = info.compressed_latin1_text.iter().find(|text| text.keyword == PARAMETERS)?.clone();
        text.decompress_text_with_limit(MAX_TEXT).ok()?;
        text.get_text().ok()
    };
    plain().or_else(unicode).or_else(compressed).filter(|text| text.len() <= MAX_TEXT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture with compressed text.
    fn with_text(text: &str, latin: bool) -> ImageFile {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
        let mut writer = {
            if latin {
                encoder.add_ztxt_chunk(PARAMETERS.to_owned(), text.to_owned()).unwrap();
            }
            encoder.write_header().unwrap()
        };
        if !latin {
            let mut chunk = png::text_metadata::ITXtChunk::new(PARAMETERS, text);
            chunk.compress_text().unwrap();
            writer.write_text_chunk(&chunk).unwrap();
        }
        writer.write_image_data(&[0]).unwrap();
        writer.finish().unwrap();
        ImageFile::open("image", bytes).unwrap()
    }

    #[test]
    fn compressed_text_is_read_no_further_than_a_limit() {
        for latin in [true, false] {
            assert_eq!(with_text("a fox", latin).parameters().as_deref(), Some("a fox"));
            assert_eq!(with_text(&"a".repeat(MAX_TEXT + 1), latin).parameters(), None);
        }
    }
}
