//! Renders the description as a page, by way of Markdown, the format of its texts.

use std::fmt::{self, Write};

use pulldown_cmark::{Options, Parser, html};
use serde_json::Value;

const STYLE: &str = include_str!("page.css");
const METHODS: [&str; 3] = ["get", "post", "delete"];

/// Renders a description; `paths` gives the order of its routes.
pub(super) fn render(api: &Value, paths: &[&str]) -> String {
    let mut markdown = String::new();
    // Writing to a `String` cannot fail.
    let _ = write_api(&mut markdown, api, paths);
    let mut body = String::new();
    html::push_html(&mut body, Parser::new_ext(&markdown, Options::ENABLE_TABLES | Options::ENABLE_HEADING_ATTRIBUTES));
    let title = text(&api["info"]["title"]);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n<main>\n{body}</main>\n</html>\n"
    )
}

fn write_api(out: &mut String, api: &Value, paths: &[&str]) -> fmt::Result {
    let info = &api["info"];
    writeln!(out, "# {} {}\n\n{}\n", text(&info["title"]), text(&info["version"]), text(&info["description"]))?;
    writeln!(out, "For programs: [openapi.json](openapi.json).\n")?;
    for tag in list(&api["tags"]) {
        writeln!(out, "## {}\n\n{}\n", text(&tag["name"]), text(&tag["description"]))?;
        for path in paths {
            for method in METHODS {
                let operation = &api["paths"][path][method];
                if list(&operation["tags"]).contains(&tag["name"]) {
                    write_operation(out, &method.to_uppercase(), path, operation)?;
                }
            }
        }
    }
    writeln!(out, "## Types\n")?;
    for (name, schema) in entries(&api["components"]["schemas"]) {
        write_schema(out, name, schema)?;
    }
    Ok(())
}

fn write_operation(out: &mut String, method: &str, path: &str, operation: &Value) -> fmt::Result {
    writeln!(out, "### {method} `{path}`\n\n{}\n\n{}\n", text(&operation["summary"]), text(&operation["description"]))?;
    if !list(&operation["parameters"]).is_empty() {
        writeln!(out, "| in | name | |\n|---|---|---|")?;
        for parameter in list(&operation["parameters"]) {
            writeln!(out, "| {} | `{}` | {} |", text(&parameter["in"]), text(&parameter["name"]), cell(&parameter["description"]))?;
        }
        writeln!(out)?;
    }
    for (media_type, content) in entries(&operation["requestBody"]["content"]) {
        writeln!(out, "Body: `{media_type}` {}\n", kind(&content["schema"]))?;
        if let Some(example) = content.get("example") {
            writeln!(out, "```json\n{}\n```\n", serde_json::to_string_pretty(example).unwrap_or_default())?;
        }
    }
    writeln!(out, "| status | answer | |\n|---|---|---|")?;
    for (status, response) in entries(&operation["responses"]) {
        let bodies = entries(&response["content"]).map(|(media_type, content)| match content.get("itemSchema") {
            Some(item) => format!("`{media_type}` of {}", kind(item)),
            None => format!("`{media_type}` {}", kind(&content["schema"])),
        });
        writeln!(out, "| {status} | {} | {} |", bodies.collect::<Vec<_>>().join(", "), cell(&response["description"]))?;
    }
    writeln!(out)
}

fn write_schema(out: &mut String, name: &str, schema: &Value) -> fmt::Result {
    writeln!(out, "### {name} {{#{name}}}\n")?;
    write_type(out, schema)?;
    match schema["type"].as_str() {
        Some("object") | None => Ok(()),
        Some(_) => writeln!(out, "{}\n", kind(schema)),
    }
}

/// Describes a type, and the types that it is composed of or chooses from.
fn write_type(out: &mut String, schema: &Value) -> fmt::Result {
    writeln!(out, "{}\n", text(&schema["description"]))?;
    for variant in list(&schema["oneOf"]) {
        // This field tells the events of a stream apart.
        if let Some(tag) = tag(variant) {
            writeln!(out, "**`{tag}`**\n")?;
        }
        write_part(out, variant)?;
    }
    for part in list(&schema["allOf"]) {
        write_part(out, part)?;
    }
    write_fields(out, schema)
}

fn write_part(out: &mut String, part: &Value) -> fmt::Result {
    if part.get("$ref").is_some() { writeln!(out, "The fields of {}.\n", kind(part)) } else { write_type(out, part) }
}

/// The one value that `type` has in a variant.
fn tag(variant: &Value) -> Option<&str> {
    let own = variant["properties"]["type"]["enum"].as_array().filter(|values| values.len() == 1).and_then(|values| values[0].as_str());
    own.or_else(|| list(&variant["allOf"]).iter().find_map(tag))
}

fn write_fields(out: &mut String, schema: &Value) -> fmt::Result {
    let required = list(&schema["required"]);
    let mut fields: Vec<_> = entries(&schema["properties"]).collect();
    if fields.is_empty() {
        return Ok(());
    }
    fields.sort_by_key(|(name, _)| !required.iter().any(|required| required == name));
    writeln!(out, "| field | | |\n|---|---|---|")?;
    for (name, field) in fields {
        let mark = if required.iter().any(|required| required == name) { "" } else { " (optional)" };
        // The description of a nullable field stands with its other alternative.
        let described = if field["description"].is_null() { &field["oneOf"][0] } else { field };
        writeln!(out, "| `{name}`{mark} | {} | {} |", kind(field), cell(&described["description"]))?;
    }
    writeln!(out)
}

/// A type in words.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next()) {
        return format!("[{name}](#{name})");
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ");
    }
    if let Some(choices) = schema["oneOf"].as_array().or(schema["anyOf"].as_array()) {
        return choices.iter().filter(|choice| choice["type"] != "null").map(kind).collect::<Vec<_>>().join(" or ");
    }
    let name = match &schema["type"] {
        Value::Array(names) => names.iter().map(text).find(|name| *name != "null").unwrap_or_default(),
        name => text(name),
    };
    match name {
        "array" => format!("list of {}", kind(&schema["items"])),
        "string" => within("text", &schema["minLength"], &schema["maxLength"], " characters"),
        "" => "anything".to_owned(),
        number => within(number, &schema["minimum"], &schema["maximum"], ""),
    }
}

fn within(name: &str, min: &Value, max: &Value, unit: &str) -> String {
    match (min.is_null(), max.is_null()) {
        (true, true) => name.to_owned(),
        (false, true) => format!("{name} from {min}{unit}"),
        (true, false) => format!("{name} up to {max}{unit}"),
        (false, false) => format!("{name}, {min} to {max}{unit}"),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// On one line, without marks that would end a table's cell.
fn cell(value: &Value) -> String {
    text(value).replace('\n', " ").replace('|', "\\|")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}
