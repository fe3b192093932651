//! Imports point one way. Each room of `src/` may use the rooms below it, and its own.

use std::{fs, path::Path};

/// Rooms from the top down, with what each may name.
const ROOMS: [(&str, &[&str]); 9] = [
    ("cli", &["backend", "builtin_model", "common", "device", "http", "ops"]),
    ("http", &["backend", "common"]),
    ("backend", &["builtin_model", "common", "device", "models", "ops", "schedulers"]),
    ("builtin_model", &[]),
    ("models", &["ops"]),
    ("schedulers", &["common"]),
    ("device.rs", &["common"]),
    ("ops", &[]),
    ("common", &[]),
];

/// Every Rust file below a path.
fn files(path: &Path) -> Vec<std::path::PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let rust = entries.filter(|entry| entry.is_dir() || entry.extension().is_some_and(|extension| extension == "rs"));
    rust.flat_map(|entry| files(&entry)).collect()
}

/// The rooms that a file names in paths that begin with `crate::`, alone or in braces.
fn imports(text: &str) -> Vec<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut rooms = Vec::new();
    for rest in text.split("crate::").skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            rooms.push(rest.split(':').next().unwrap_or_default().to_owned());
            continue;
        };
        let mut depth = 0;
        let mut item = String::new();
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => rooms.push(std::mem::take(&mut item)),
                _ => {}
            }
            item.push(c);
        }
        rooms.push(item);
    }
    let first_word = |item: &String| item.trim_start_matches(|c: char| !is_word(c)).chars().take_while(|c| is_word(*c)).collect();
    rooms.iter().map(first_word).filter(|room: &String| !room.is_empty()).collect()
}

#[test]
fn imports_point_down() {
    let mut seen = 0;
    for (room, allowed) in ROOMS {
        let own = room.trim_end_matches(".rs");
        let (folder, beside) = (Path::new("src").join(room), Path::new("src").join(format!("{own}.rs")));
        let beside = if folder.is_dir() && beside.exists() { files(&beside) } else { Vec::new() };
        for file in files(&folder).into_iter().chain(beside) {
            for import in imports(&fs::read_to_string(&file).unwrap()) {
                assert!(import == own || allowed.contains(&import.as_str()), "{} imports {import}", file.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 30, "only {seen} imports were found: does the scanner still read them?");
}

#[test]
fn every_room_is_known() {
    let mut rooms: Vec<String> = fs::read_dir("src").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    // A room is a folder, the file beside it that begins it, or both.
    let is_beside = |room: &str| room.strip_suffix(".rs").is_some_and(|name| Path::new("src").join(name).is_dir());
    rooms.retain(|room| room != "lib.rs" && room != "main.rs" && !is_beside(room));
    let mut known: Vec<&str> = ROOMS.iter().map(|(room, _)| *room).collect();
    rooms.sort();
    known.sort_unstable();
    assert_eq!(rooms, known);
}

#[test]
fn the_scanner_reads_groups() {
    let text = "use crate::{\n    common::{A, B},\n    device,\n    models::C,\n};\nuse crate::ops::D; fn f() { crate::http::g() }";
    assert_eq!(imports(text), ["common", "device", "models", "ops", "http"]);
}

#[test]
fn files_and_the_seeds_pattern_stay_small() {
    for file in files(Path::new("src")) {
        let lines = fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= 450, "{} has {lines} lines", file.display());
    }
    let queue = fs::read_to_string("src/backend/request_queue.rs").unwrap();
    let fields = queue.split("pub struct RequestQueue {").nth(1).unwrap().split('}').next().unwrap();
    assert_eq!(fields.trim(), "sender: UnboundedSender<GenerationRequest>,", "the queue holds the sender and nothing else");
}
