//! Folders of files.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

use super::write;
use crate::backend::adapters::{AdapterError, AdapterFolder};

const TENSORS: [(&str, &[usize]); 1] = [("a.diff", &[2, 2])];

fn adapter(folder: &Path, name: &str, alias: &str) {
    let path = folder.join(name).with_extension("safetensors");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    write(&path, &TENSORS, &[("ss_output_name", alias)]);
}

/// The names of all files.
fn names(folder: &AdapterFolder) -> Vec<String> {
    folder.list().iter().map(|entry| entry.name().to_owned()).collect()
}

#[test]
fn files_are_found_by_name_and_by_alias() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path();
    adapter(place, "fox", "fox-v2");
    adapter(place, "deep/er/owl", "both");
    adapter(place, "cat", "both");
    adapter(place, "dog", "fox");
    fs::write(place.join("broken.safetensors"), "no tensors").unwrap();
    fs::write(place.join("note.txt"), "not an adapter").unwrap();
    fs::create_dir(place.join("folder.safetensors")).unwrap();
    let folder = AdapterFolder::new(place).unwrap();
    assert_eq!(names(&folder), ["broken", "cat", "owl", "dog", "fox"]);
    let name_of = |name: &str| folder.get(name).map(|entry| entry.name().to_owned());
    assert_eq!(name_of("fox-v2").as_deref(), Some("fox"));
    assert_eq!(name_of("fox").as_deref(), Some("fox"), "a name comes before an alias");
    assert_eq!(name_of("owl").as_deref(), Some("owl"));
    assert_eq!(name_of("both"), None, "an alias of two is of none");
    for unknown in ["Fox", "fox.safetensors", "deep/er/owl", "../fox", "/etc/passwd", "", ".", "note", "folder", "er"] {
        assert_eq!(name_of(unknown), None, "{unknown}");
    }
    let broken = folder.get("broken").unwrap();
    assert!(broken.info().unwrap_err().contains("broken.safetensors is no whole safetensors file"), "{broken:?}");
    let fox = folder.get("fox").unwrap();
    assert_eq!(fox.info().unwrap().alias.as_deref(), Some("fox-v2"));
    assert_eq!(fox.open().unwrap().modules().len(), 1);
    assert_eq!(fox.len(), fs::metadata(fox.path()).unwrap().len());
    assert!(fox.modified().is_some() && !fox.is_empty());
}

#[test]
fn the_second_file_of_a_name_is_listed_and_not_found() {
    let place = tempfile::tempdir().unwrap();
    adapter(place.path(), "a/fox", "first");
    adapter(place.path(), "b/fox", "second");
    let folder = AdapterFolder::new(place.path()).unwrap();
    assert_eq!(names(&folder), ["fox", "fox"]);
    assert!(folder.get("fox").unwrap().path().ends_with("a/fox.safetensors"));
    assert!(folder.get("second").unwrap().path().ends_with("b/fox.safetensors"), "its alias is its own");
}

#[test]
fn links_to_files_are_followed_and_links_to_folders_are_not() {
    let (place, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    adapter(elsewhere.path(), "far", "far");
    symlink(elsewhere.path().join("far.safetensors"), place.path().join("near.safetensors")).unwrap();
    symlink(elsewhere.path(), place.path().join("out")).unwrap();
    symlink(place.path(), place.path().join("circle")).unwrap();
    symlink("nowhere", place.path().join("lost.safetensors")).unwrap();
    let folder = AdapterFolder::new(place.path()).unwrap();
    assert_eq!(names(&folder), ["lost", "near"]);
    assert!(folder.get("near").unwrap().info().is_ok());
    assert!(folder.get("lost").unwrap().info().unwrap_err().contains("cannot be read"));
}

#[test]
fn subfolders_have_a_limit() {
    let place = tempfile::tempdir().unwrap();
    adapter(place.path(), "1/2/3/4/5/6/7/8/shallow", "");
    adapter(place.path(), "1/2/3/4/5/6/7/8/9/deep", "");
    assert_eq!(names(&AdapterFolder::new(place.path()).unwrap()), ["shallow"]);
}

#[test]
fn new_files_are_found_and_the_others_not_read_again() {
    let place = tempfile::tempdir().unwrap();
    adapter(place.path(), "fox", "first");
    let folder = AdapterFolder::new(place.path()).unwrap();
    let fox = folder.get("fox").unwrap();
    adapter(place.path(), "owl", "owl");
    folder.refresh().unwrap();
    assert!(folder.get("owl").is_some());
    assert!(std::sync::Arc::ptr_eq(&fox, &folder.get("fox").unwrap()));
    adapter(place.path(), "fox", "second");
    let later = SystemTime::now() + Duration::from_mins(1);
    fs::File::options().write(true).open(fox.path()).unwrap().set_modified(later).unwrap();
    folder.refresh().unwrap();
    assert_eq!(folder.get("fox").unwrap().info().unwrap().alias.as_deref(), Some("second"));
    fs::remove_file(fox.path()).unwrap();
    folder.refresh().unwrap();
    assert!(folder.get("fox").is_none() && folder.get("owl").is_some());
    fs::remove_dir_all(place.path()).unwrap();
    assert!(matches!(folder.refresh(), Err(AdapterError::Unreadable { .. })));
    assert_eq!(names(&folder), ["owl"], "the list stays");
    assert!(matches!(AdapterFolder::new(place.path()), Err(AdapterError::Unreadable { .. })));
}

#[test]
fn an_unknown_name_leads_to_another_look_once_a_second() {
    let place = tempfile::tempdir().unwrap();
    let folder = AdapterFolder::new(place.path()).unwrap();
    adapter(place.path(), "fox", "");
    let found = (0..600).find(|_| {
        thread::sleep(Duration::from_millis(10));
        folder.get("fox").is_some()
    });
    assert!(found.is_some());
}

#[test]
fn many_threads_may_ask_at_once() {
    let place = tempfile::tempdir().unwrap();
    adapter(place.path(), "fox", "alias");
    let folder = AdapterFolder::new(place.path()).unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    folder.refresh().unwrap();
                    assert!(folder.get("alias").is_some() && folder.get("none").is_none());
                }
            });
        }
    });
}
