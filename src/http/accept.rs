//! Which of a route's media types a client prefers.

use axum::http::{HeaderMap, header};

/// Whether a client would rather have HTML than JSON, as browsers would. A client that does not care, such as curl, would not.
pub(super) fn prefers_html(headers: &HeaderMap) -> bool {
    let fields = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges: Vec<(&str, f32)> = fields.flat_map(|field| field.split(',')).map(range).collect();
    // The most specific range that covers a type decides (RFC 9110, 12.5.1).
    let quality = |covering: &[&str]| {
        let find = |name: &&str| ranges.iter().find(|(range, _)| range.eq_ignore_ascii_case(name));
        covering.iter().find_map(find).map_or(0.0, |(_, quality)| *quality)
    };
    quality(&["text/html", "text/*"]) > quality(&["application/json", "application/*", "*/*"])
}

/// A media range with its quality. A quality that is no number counts as none.
fn range(text: &str) -> (&str, f32) {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    (name, quality.map_or(1.0, |quality| quality.parse().unwrap_or(0.0)))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn browsers_prefer_html_and_programs_do_not() {
        for (fields, expected) in [
            (&["text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"][..], true),
            (&["text/html"], true),
            (&["TEXT/HTML ; Q=0.5"], true),
            (&["application/json;q=0.5", "text/*"], true),
            (&["text/html;q=0.9, application/json;q=0.8, */*"], true),
            (&[], false),
            (&[""], false),
            (&["*/*"], false),
            (&["text/html, */*"], false),
            (&["application/json, text/plain, */*"], false),
            (&["text/html;q=0.5, application/json"], false),
            (&["text/html, application/json"], false),
            (&["text/html;q=0"], false),
            (&["text/html;q=x", "text/html;q=nan"], false),
        ] {
            let fields = fields.iter().map(|field| (header::ACCEPT, HeaderValue::from_static(field)));
            let mut headers = HeaderMap::new();
            fields.for_each(|(name, value)| _ = headers.append(name, value));
            assert_eq!(prefers_html(&headers), expected, "{headers:?}");
        }
    }
}
