//! From the description to a page, by way of Markdown, in which its texts are written.

use std::fmt::{self, Write};

use pulldown_cmark::{Options, Parser, html};
use serde_json::Value;

const STYLE: &str = include_str!("page.css");
const METHODS: [&str; 3] = ["get", "post", "delete"];

pub(super) fn render(api: &Value) -> String {
    let mut markdown = String::new();
    // Only a writer that is full can fail.
    let _ = write_api(&mut markdown, api);
    let mut body = String::new();
    html::push_html(&mut body, Parser::new_ext(&markdown, Options::ENABLE_TABLES | Options::ENABLE_HEADING_ATTRIBUTES));
    let title = text(&api["info"]["title"]);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n<main>\n{body}</main>\n</html>\n"
    )
}

fn write_api(out: &mut String, api: &Value) -> fmt::Result {
    let info = &api["info"];
    writeln!(out, "# {} {}\n\n{}\n", text(&info["title"]), text(&info["version"]), text(&info["description"]))?;
    writeln!(out, "For programs: [openapi.json](openapi.json).\n")?;
    for tag in list(&api["tags"]) {
        writeln!(out, "## {}\n\n{}\n", text(&tag["name"]), text(&tag["description"]))?;
        for (path, item) in entries(&api["paths"]) {
            for method in METHODS {
                let operation = &item[method];
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
    for (_, content) in entries(&operation["requestBody"]["content"]) {
        writeln!(out, "Body: {}\n", kind(&content["schema"]))?;
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
    writeln!(out, "### {name} {{#{name}}}\n\n{}\n", text(&schema["description"]))?;
    // A sum of types is a table for each, after a line for those that have a name of their own.
    for part in ["allOf", "oneOf"].iter().flat_map(|sum| list(&schema[sum])) {
        if part.get("$ref").is_some() {
            writeln!(out, "The fields of {}.\n", kind(part))?;
        }
        writeln!(out, "{}\n", text(&part["description"]))?;
        write_fields(out, part)?;
    }
    match schema["type"].as_str() {
        Some("object") => write_fields(out, schema),
        Some(_) => writeln!(out, "{}\n", kind(schema)),
        None => Ok(()),
    }
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
        // Of a field that may be null, the text is with what else it may be.
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

/// In one line, and with no mark that would end it.
fn cell(value: &Value) -> String {
    text(value).replace('\n', " ").replace('|', "\\|")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}
