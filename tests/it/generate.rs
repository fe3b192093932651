//! `sd-worker generate`: the files that it writes.

use std::fs;

use crate::{
    cli::{failure, path, run},
    support::binary,
};

#[test]
fn a_prompt_becomes_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let (file, latents) = (path(&folder, "fox.png"), path(&folder, "fox.safetensors"));
    let args = [
        "generate",
        "a fox",
        "-o",
        &file,
        "--seed",
        "1",
        "--steps",
        "2",
        "--width",
        "72",
        "--height",
        "64",
        "--guidance-scale",
        "4",
        "--sampler",
        "euler a",
        "--save-latents",
        &latents,
    ];
    let output = run(&args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("72x64, 2 steps of euler_a at guidance 4, seed 1 (load "), "{stderr}");
    assert_eq!(image::open(&file).unwrap().width(), 72);

    let tensors = candle_core::safetensors::load(&latents, &candle_core::Device::Cpu).unwrap();
    let mut names: Vec<&String> = tensors.keys().collect();
    names.sort();
    assert_eq!(names, ["latents.0", "latents.1", "latents.2", "text_embeddings"]);
    assert_eq!(tensors["latents.2"].dims()[..2], [1, 4]);

    let first = fs::read(&file).unwrap();
    assert!(run(&args).status.success());
    assert_eq!(fs::read(&file).unwrap(), first, "the same seed, the same file");
}

/// Writing through a link keeps the link.
#[cfg(unix)]
#[test]
fn files_are_written_through_links() {
    let folder = tempfile::tempdir().unwrap();
    let [picture, latents] = ["fox.png", "fox.safetensors"].map(|name| {
        fs::write(path(&folder, &format!("real {name}")), "old").unwrap();
        std::os::unix::fs::symlink(format!("real {name}"), path(&folder, name)).unwrap();
        path(&folder, name)
    });
    let files = ["-o", &picture, "--save-latents", &latents];
    let output = binary().args(["generate", "a fox", "--steps", "1", "--width", "64", "--height", "64"]).args(files).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!([&picture, &latents].iter().all(|file| fs::symlink_metadata(file).unwrap().is_symlink()));
    assert_eq!(image::open(path(&folder, "real fox.png")).unwrap().width(), 64);
    let tensors = candle_core::safetensors::load(path(&folder, "real fox.safetensors"), &candle_core::Device::Cpu).unwrap();
    assert!(tensors.contains_key("latents.1"));
}

/// Existing files stay, unless they are named.
#[test]
fn pictures_go_where_they_are_sent() {
    let folder = tempfile::tempdir().unwrap();
    let small = ["generate", "a fox", "--steps", "1", "--size", "64x72", "--seed", "5"];
    let here = |more: &[&str]| {
        let output = binary().current_dir(folder.path()).args(small).args(more).output().unwrap();
        assert!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    };
    let names = || {
        let mut names: Vec<String> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    fs::write(folder.path().join("out.png"), "mine").unwrap();
    let said = String::from_utf8(here(&["-n", "2"]).stderr).unwrap();
    assert!(said.contains("out-1.png: 64x72, ") && said.contains("out-2.png: 64x72, "), "{said}");
    assert_eq!(names(), ["out-1.png", "out-2.png", "out.png"]);
    assert_eq!(fs::read(folder.path().join("out.png")).unwrap(), b"mine");

    here(&["-o", "fox.png", "-n", "2"]);
    for (ours, theirs) in [("fox-1.png", "out-1.png"), ("fox-2.png", "out-2.png")] {
        assert_eq!(fs::read(folder.path().join(ours)).unwrap(), fs::read(folder.path().join(theirs)).unwrap(), "{ours}");
    }
    here(&["-o", "out.png"]);
    let second = here(&["-o", "-"]);
    assert_eq!(second.stdout, fs::read(folder.path().join("out.png")).unwrap(), "- is stdout");
    assert_eq!(second.stdout, fs::read(folder.path().join("fox-1.png")).unwrap());
    assert_eq!(names(), ["fox-1.png", "fox-2.png", "out-1.png", "out-2.png", "out.png"], "nothing is left beside them");
    let random = String::from_utf8(
        binary().current_dir(folder.path()).args(&small[..6]).args(["--seed", "-1", "-o", "r.png"]).output().unwrap().stderr,
    )
    .unwrap();
    assert!(random.contains(", seed ") && !random.contains("seed -1"), "{random}");
    let pixels = |args: &[&str]| {
        let output = here(&[&["-o", "e.png", "--sampler", "ddim"], args].concat());
        assert!(!String::from_utf8_lossy(&output.stderr).contains("no effect"), "{output:?}");
        image::open(folder.path().join("e.png")).unwrap().to_rgb8()
    };
    let plain = pixels(&[]);
    assert!(pixels(&["--eta", "1"]) != plain && pixels(&["--clip-skip", "2"]) != plain);
    let without = String::from_utf8(here(&["-o", "e.png", "--sampler", "euler", "--eta", "1"]).stderr).unwrap();
    assert!(without.contains("warning: eta has no effect here"), "{without}");
    for (args, message) in [
        (&["-o", "-", "-n", "2"][..], "count must be 1 where the picture goes to stdout, not 2"),
        (&["-o", "a.png", "-n", "2", "--save-latents", "a.safetensors"], "count must be 1 with --save-latents, not 2"),
        (&["-n", "11"], "11 is not in 1..=10"),
        (&["--width", "64"], "cannot be used with"),
        (&["--seed", "-2"], "must be a whole number from 0"),
    ] {
        let (code, line) = failure(&[&small[..6], args].concat());
        assert!(code == 64 && line.contains(message), "{args:?}: {line}");
    }
}

/// A disk that fills up while a picture is written leaves the old file.
#[cfg(target_os = "linux")]
#[test]
fn a_picture_that_cannot_be_written_leaves_the_older_one() {
    let folder = tempfile::tempdir().unwrap();
    let picture = path(&folder, "fox.png");
    fs::write(&picture, vec![7; 5000]).unwrap();
    // The system limits files to a kilobyte.
    let program = format!(
        "ulimit -f 1; trap '' XFSZ; exec {} generate 'a fox' --steps 1 --width 64 --height 64 -o \"$0\"",
        env!("CARGO_BIN_EXE_sd-worker")
    );
    let output = std::process::Command::new("bash").args(["-c", &program, &picture]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(73), "{stderr}");
    assert!(stderr.contains(&format!("error: cannot write {picture}: ")), "{stderr}");
    assert_eq!(fs::read(&picture).unwrap(), vec![7; 5000]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[cfg(unix)]
#[test]
fn a_picture_to_begin_with_is_a_file_with_one() {
    let folder = tempfile::tempdir().unwrap();
    let (pipe, text, cut, right) = (path(&folder, "pipe"), path(&folder, "text"), path(&folder, "cut.png"), path(&folder, "right.png"));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    fs::write(&text, "no picture").unwrap();
    image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8, y as u8, 9])).save(&right).unwrap();
    let whole = fs::read(&right).unwrap();
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    for (bad, reason) in [
        (pipe.as_str(), "it is a directory, a FIFO or a device, and not a file"),
        ("/dev/zero", "it is a directory, a FIFO or a device, and not a file"),
        (folder.path().to_str().unwrap(), "it is a directory, a FIFO or a device, and not a file"),
        (&text, "it must be a PNG, JPEG or WebP file"),
        (&cut, "it must be a PNG, JPEG or WebP file"),
        ("no/such.png", "No such file"),
    ] {
        for args in [&["--init-image", bad][..], &["--init-image", &right, "--mask", bad]] {
            let output = path(&folder, "a.png");
            let (code, line) = failure(&[&["generate", "a", "--steps", "2", "-o", &output], args].concat());
            assert!(code == 66 && line.starts_with(&format!("error: cannot read {bad}: ")) && line.contains(reason), "{code}: {line}");
        }
    }
}
