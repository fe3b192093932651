//! The command line: pictures, exports, messages and exit codes.

use std::{fs, path::Path, process::Output};

use crate::support::{binary, copy_of_tiny, edit};

pub(crate) fn run(args: &[&str]) -> Output {
    binary().args(args).output().unwrap()
}

/// The exit code, and the last line of stderr.
pub(crate) fn failure(args: &[&str]) -> (i32, String) {
    let output = run(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), stderr.trim_end().lines().last().unwrap_or_default().to_owned())
}

pub(crate) fn path(folder: &tempfile::TempDir, name: &str) -> String {
    folder.path().join(name).to_str().unwrap().to_owned()
}

/// A full disk, and a closed pipe.
#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_said_stops_nothing() {
    use std::process::Stdio;

    let folder = tempfile::tempdir().unwrap();
    let picture = path(&folder, "fox.png");
    let generate = ["generate", "a fox", "--steps", "1", "--width", "64", "--height", "64", "-o", &picture];
    let nowhere = || -> [Stdio; 2] {
        let (_, pipe) = std::io::pipe().unwrap();
        [fs::File::options().write(true).open("/dev/full").unwrap().into(), pipe.into()]
    };
    for (args, code) in [(&["models", "list"][..], 73), (&["--build-info"], 73), (&["--help"], 73), (&generate, 0)] {
        // Output to a full disk is lost; a closed pipe's reader has read what it wanted.
        for ((stdout, stderr), code) in nowhere().into_iter().zip(nowhere()).zip([code, 0]) {
            let status = binary().args(args).stdout(stdout).stderr(stderr).status().unwrap();
            assert_eq!(status.code(), Some(code), "{args:?}");
        }
    }
    assert_eq!(image::open(&picture).unwrap().width(), 64);
}

/// A pipe that is full and that its holder does not read.
#[cfg(target_os = "linux")]
#[test]
fn no_pipe_stops_a_command() {
    use std::{io::Write, os::fd::AsRawFd, process::Stdio, time::Instant};

    fn full_pipe() -> (std::io::PipeReader, Stdio) {
        let (reader, writer) = std::io::pipe().unwrap();
        // On Linux, the other end can tell when the pipe is full.
        let mut file =
            fs::File::options().write(true).custom_flags(libc::O_NONBLOCK).open(format!("/proc/self/fd/{}", writer.as_raw_fd())).unwrap();
        while file.write(&[b'x'; 4096]).is_ok() {}
        while file.write(b"x").is_ok() {}
        (reader, writer.into())
    }
    use std::os::unix::fs::OpenOptionsExt;
    let folder = tempfile::tempdir().unwrap();
    let picture = path(&folder, "fox.png");
    let generate = ["generate", "a fox", "--steps", "1", "--width", "64", "--height", "64", "-o", &picture];
    for (args, code) in [
        (&["models", "list"][..], 73),
        (&["--build-info"], 73),
        (&["--version"], 73),
        (&["selfcheck", "--device", "cpu"], 73),
        (&["dance"], 64),
        (&["serve", "--port", "0", "--exit-on-stdin-eof"], 0),
        (&generate, 0),
    ] {
        let ((_out, stdout), (_err, stderr)) = (full_pipe(), full_pipe());
        let mut child = binary().args(args).stdout(stdout).stderr(stderr).spawn().unwrap();
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if started.elapsed().as_secs() > 180 {
                child.kill().unwrap();
                panic!("{args:?} hangs");
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        };
        assert_eq!(status.code(), Some(code), "{args:?}");
    }
    assert_eq!(image::open(&picture).unwrap().width(), 64);
}

#[test]
fn a_model_goes_by_the_name_that_it_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let picture = path(&folder, "fox.png");
    for (model, name) in [(&["--model", "owner/fine"][..], "owner/fine"), (&[], "tiny")] {
        let files = ["--model-path", "tests/parity/tiny", "--steps", "1", "-o", &picture];
        let output = binary().args(["generate", "a fox"]).args(model).args(files).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let file = fs::read(&picture).unwrap();
        assert!(String::from_utf8_lossy(&file).contains(&format!("Model: {name}, ")), "{name}");
    }
}

/// Only a schedule that was asked for is refused.
#[test]
fn a_sampler_need_not_have_the_schedule_of_the_model() {
    let model = copy_of_tiny();
    edit(&model.path().join("scheduler/scheduler_config.json"), |config| config["use_karras_sigmas"] = true.into());
    let (folder, picture) = (model.path().to_str().unwrap(), path(&model, "fox.png"));
    let output = run(&["generate", "a fox", "--model", folder, "--sampler", "ddim", "--steps", "1", "-o", &picture]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_exported_model_makes_the_same_picture() {
    let folder = tempfile::tempdir().unwrap();
    let (model, ours, theirs) = (path(&folder, "model"), path(&folder, "a.png"), path(&folder, "b.png"));
    assert!(run(&["models", "export", "builtin", &model]).status.success());
    for part in ["model_index.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json", "LICENSES.md"] {
        assert!(Path::new(&model).join(part).is_file(), "{part}");
    }
    for (file, name) in [(&ours, "builtin"), (&theirs, model.as_str())] {
        let output = run(&["generate", "a fox", "--seed", "1", "--steps", "1", "-o", file, "--model", name]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let pixels = |file: &str| image::open(file).unwrap().to_rgb8();
    assert_eq!(pixels(&ours), pixels(&theirs));
    // Other programs do not know int8 weights with factors.
    let tensors =
        candle_core::safetensors::load(Path::new(&model).join("vae/diffusion_pytorch_model.safetensors"), &candle_core::Device::Cpu);
    let tensors = tensors.unwrap();
    assert!(tensors.values().all(|tensor| tensor.dtype() == candle_core::DType::F16));
    assert!(tensors.contains_key("decoder.conv_in.weight") && !tensors.keys().any(|name| name.ends_with("_scale")));
    // transformers loads the text encoder in its configuration's type, and diffusers loads the other parts in f32; the types must agree.
    // or no call works.
    let config = std::fs::read(Path::new(&model).join("text_encoder/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["dtype"], "float32");
    let (code, message) = failure(&["models", "export", "builtin", &model]);
    assert_eq!(code, 78);
    assert!(message.ends_with("model is not empty"), "{message}");
    assert_eq!(String::from_utf8(run(&["models", "list"]).stdout).unwrap(), "builtin\n");
}

/// Weights in less memory change the picture a little.
#[test]
fn weights_in_less_memory_make_nearly_the_same_picture() {
    let folder = tempfile::tempdir().unwrap();
    let picture = |dtype: &str| {
        let file = path(&folder, &format!("{dtype}.png"));
        let args = ["generate", "a fox", "-o", &file, "--seed", "1", "--steps", "3", "--width", "64", "--height", "64", "--dtype", dtype];
        let output = run(&args);
        assert!(output.status.success(), "{dtype}: {}", String::from_utf8_lossy(&output.stderr));
        image::open(&file).unwrap().into_rgb8().into_raw()
    };
    let right = picture("f32");
    // Every weight of the built-in model is exactly an f16, so f16 changes nothing. Others may differ by this mean, of 255.
    for (dtype, least, most) in [("f16", 0.0, 0.01), ("bf16", 0.01, 3.0), ("q8_0", 0.01, 3.0)] {
        let off: u64 = picture(dtype).iter().zip(&right).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        let mean = off as f64 / right.len() as f64;
        assert!((least..=most).contains(&mean), "{dtype}: {mean}");
    }
    let (code, line) = failure(&["generate", "a fox", "--dtype", "int4"]);
    assert!(code == 64 && line.contains("\"int4\" is none of f32, f16, bf16, q8_0"), "{code}: {line}");
}

#[test]
fn bad_arguments_are_refused_in_one_line() {
    let long = "x".repeat(33_000);
    for (args, code, message) in [
        (vec!["generate", ""], 64, "must be 1 to 32000 characters, not empty"),
        (vec!["generate", &long], 64, "must be 1 to 32000 characters, not 33000"),
        (vec!["generate", "a", "--steps", "0"], 64, "must be a whole number from 1 to 1000, not 0"),
        (vec!["generate", "a", "--guidance-scale", "NaN"], 64, "must be a number from 0 to 50, not NaN"),
        (vec!["generate", "a", "--sampler", "plms2"], 64, "euler_a_cfg_pp, lcm, tcd, not \"plms2\""),
        (
            vec!["generate", "a", "--width", "65", "--height", "64"],
            64,
            "error: size must be WIDTHxHEIGHT with both multiples of 8 from 64 to 4096, not 65x64",
        ),
        (
            vec!["generate", "a", "--width", "4096", "--height", "4096"],
            64,
            "error: size must be at most 2097152 pixels on this worker (its --max-pixels), not 4096x4096",
        ),
        (
            vec!["generate", "a", "--sampler", "ddim", "--schedule", "karras"],
            64,
            "error: schedule must be one of default, normal, sgm_uniform with the sampler ddim, not karras",
        ),
        (
            vec!["generate", "a", "-o", "fox.gif"],
            64,
            "error: output must be - or a file name that ends in .png, .jpg, .jpeg or .webp, not fox.gif",
        ),
        (
            vec!["generate", "a", "-o", "no/such/folder/fox.png"],
            73,
            "error: cannot write no/such/folder/fox.png: No such file or directory (os error 2)",
        ),
        (vec!["generate", "a", "--device", "tpu"], 64, "must be auto, cpu, cuda, cuda:N or metal, not \"tpu\""),
        (
            vec!["serve", "--host", "0.0.0.0"],
            78,
            "error: 0.0.0.0 can be reached by others, and nothing would keep them out; give --api-key, or say --insecure if that is what you want",
        ),
        (vec!["serve", "--api-key", " "], 78, "error: the API key is empty; leave it out if there is to be none"),
        (vec!["serve", "--api-key-file", "no/such/key"], 78, "error: the API key cannot be read from no/such/key: No such file"),
        (vec!["serve", "--queue-capacity", "0"], 64, "0 is not in 1..=1000000"),
        (vec!["generate", "a", "--save-latents", "no/such/folder/x.safetensors"], 73, "cannot write no/such/folder/x.safetensors"),
        (vec!["generate", "a", "--max-pixels", "1000"], 78, "error: --max-pixels 1000 is less than the model's own "),
        (vec!["serve", "--threads", "0"], 64, "0 is not in 1..=1024"),
        (vec!["generate", "a", "--threads", "1025"], 64, "1025 is not in 1..=1024"),
        (vec!["--port", "70000"], 64, "70000 is not in 0..=65535"),
        (vec!["--model", "models", "--port", "0"], 66, "error: there is no model models: "),
        (vec!["dance"], 64, "unrecognized subcommand"),
    ] {
        let output = run(&args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        let last = stderr.trim_end().lines().last().unwrap();
        assert!(last.starts_with("error: ") && last.contains(message), "{args:?}: {stderr}");
        assert_eq!(last.matches(message).count(), 1, "{last}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}

/// Durations beyond a clock's range are refused.
#[test]
fn nothing_is_waited_for_longer_than_a_day() {
    for option in ["--client-timeout", "--keep-results", "--drain-timeout", "--watchdog", "--heartbeat-interval"] {
        let (code, message) = failure(&["serve", option, "18446744073709551615"]);
        assert!(code == 64 && message.contains("18446744073709551615 is not in ") && message.ends_with("..=86400"), "{code}: {message}");
    }
}

#[test]
fn flags_in_the_environment_are_put_in_many_ways() {
    let outcome = |name: &str, value: &str| {
        let output = binary().args(["--host", "0.0.0.0", "--cors-origin", "x"]).env(name, value).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), stderr.trim_end().lines().last().unwrap().to_owned())
    };
    for (yes, no) in [("1", "0"), ("true", "false"), ("yes", "no"), ("ON", "OFF")] {
        let (allowed, refused) = (outcome("SD_WORKER_INSECURE", yes).1, outcome("SD_WORKER_INSECURE", no).1);
        assert!(allowed.contains("--cors-origin must be") && refused.contains("can be reached by others"), "{allowed} {refused}");
        for name in ["SD_WORKER_LOW_MEMORY", "SD_WORKER_EXIT_ON_STDIN_EOF"] {
            assert_eq!((outcome(name, yes).0, outcome(name, no).0), (78, 78), "{name}");
        }
    }
    let (code, message) = outcome("SD_WORKER_INSECURE", "perhaps");
    assert!(code == 64 && message.contains("'perhaps' for '--insecure'"), "{code}: {message}");
}

#[test]
fn a_variable_that_is_empty_is_none_and_one_that_is_misspelt_is_named() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = port.local_addr().unwrap().port().to_string();
    // A run that gets as far as the port has accepted the other arguments.
    let outcome = |variables: &[(&str, &str)]| {
        let output =
            binary().args(["serve", "--log-level", "warn"]).env("SD_WORKER_PORT", &taken).envs(variables.iter().copied()).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let empty =
        ["SD_WORKER_HOST", "SD_WORKER_DEVICE", "SD_WORKER_THREADS", "SD_WORKER_API_KEY", "SD_WORKER_CORS_ORIGIN", "SD_WORKER_INSECURE"];
    let (code, stderr) = outcome(&empty.map(|name| (name, "")));
    assert_eq!((code, stderr.lines().count()), (69, 1), "{stderr}");
    let (code, stderr) = outcome(&[("SD_WORKER_CALBACK_URL", "x"), ("SD_WORKER_WARP", "1"), ("SD_WORKER_NOTHING", "")]);
    assert_eq!(code, 69, "{stderr}");
    for said in [
        "SD_WORKER_CALBACK_URL sets nothing: did you mean SD_WORKER_CALLBACK_URL?",
        "SD_WORKER_WARP sets nothing: `sd-worker serve --help`",
    ] {
        assert_eq!(stderr.matches(said).count(), 1, "{said}: {stderr}");
    }
    assert!(!stderr.contains("SD_WORKER_NOTHING"), "{stderr}");
    // The variables of Kubernetes for a service of this name.
    let of_kubernetes =
        [("SD_WORKER_PORT", "tcp://10.0.0.7:80"), ("SD_WORKER_SERVICE_HOST", "10.0.0.7"), ("SD_WORKER_PORT_80_TCP", "tcp://10.0.0.7:80")];
    let output = binary().args(["serve", "--log-level", "warn", "--port", &taken]).envs(of_kubernetes).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(69), 1), "{stderr}");
}

#[test]
fn tips_name_what_was_meant_or_nothing() {
    for (args, tip) in [
        (["generate", "a", "--step", "1"], Some("--steps")),
        (["generate", "a", "--guidence-scale", "1"], Some("--guidance-scale")),
        (["generate", "a", "--scale", "1"], None),
        (["generate", "a", "--name", "1"], None),
        (["generate", "a", "--weight", "1"], None),
        (["generate", "a", "--negative", "1"], Some("--negative-prompt")),
        (["generate", "a", "--strengths", "1"], Some("--strength")),
    ] {
        let stderr = String::from_utf8(run(&args).stderr).unwrap();
        let tips: Vec<&str> = stderr.lines().filter(|line| line.contains("a similar argument exists")).collect();
        assert_eq!(tips.len(), usize::from(tip.is_some()), "{args:?}: {stderr}");
        assert!(tip.is_none_or(|tip| tips[0].contains(&format!("'{tip}'"))), "{args:?}: {stderr}");
    }
}

#[test]
fn a_device_is_compared_with_diffusers() {
    let output = run(&["selfcheck", "--device", "cpu"]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<Vec<&str>> = stdout.lines().skip(2).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 3 * 6, "{stdout}");
    for row in &rows {
        let [_, _, error, limit] = row.as_slice() else { panic!("{row:?}") };
        assert!(error.parse::<f32>().unwrap() <= limit.parse().unwrap(), "{row:?}");
    }
    // Two computations in floating point always differ in some bits.
    assert!(rows.iter().filter(|row| row[1] != "picture").all(|row| row[2] != "0.0e0"), "{stdout}");
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_is_not_there_is_code_69() {
    let (code, message) = failure(&["generate", "a", "--device", "cuda"]);
    assert_eq!(code, 69);
    assert!(message.contains("cuda:0 is not available"), "{message}");
}

#[test]
fn a_port_in_use_is_code_69() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, message) = failure(&["serve", "--port", &port]);
    assert_eq!(code, 69);
    assert!(message.starts_with(&format!("error: cannot listen on 127.0.0.1:{port}: ")), "{message}");
}

#[test]
fn help_is_worth_reading() {
    for args in [&["--help"][..], &["generate", "--help"], &["models", "--help"]] {
        let output = binary().args(args).env("COLUMNS", "120").output().unwrap();
        assert!(output.status.success());
        insta::assert_snapshot!(args.join(" "), String::from_utf8(output.stdout).unwrap());
    }
}

#[test]
fn shells_complete_commands_and_options() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = run(&["completions", shell]);
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && script.contains("guidance-scale"), "{shell}: {script}");
    }
    let script = String::from_utf8(run(&["completions", "bash"]).stdout).unwrap();
    for (words, completed) in
        [("gen", "generate"), ("generate --guidance-s", "--guidance-scale"), ("models l", "list"), ("serve --log-format j", "json")]
    {
        let all: Vec<&str> = "sd-worker".split(' ').chain(words.split(' ')).collect();
        let [.., before, last] = all.as_slice() else { unreachable!() };
        let complete = format!(
            "COMP_WORDS=({}) COMP_CWORD={}; _sd__worker sd-worker {last} {before}; echo ${{COMPREPLY[@]}}",
            all.join(" "),
            all.len() - 1
        );
        let output = std::process::Command::new("bash").args(["-c", &format!("{script}\n{complete}")]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), completed, "{words}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let (code, message) = failure(&["completions", "tcsh"]);
    assert!(code == 64 && message.contains("bash, elvish, fish, powershell, zsh"), "{code}: {message}");
}

/// A page is the same wherever it is made.
#[test]
fn the_manual_has_a_page_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("share/man1");
    let command = |args: &[&str]| binary().args(args).env("SD_WORKER_PORT", "4321").output().unwrap();
    assert!(command(&["man", pages.to_str().unwrap()]).status.success());
    let mut names: Vec<String> = fs::read_dir(&pages).unwrap().map(|page| page.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let commands = ["completions", "generate", "man", "models-export", "models-list", "models", "selfcheck", "serve"];
    let expected = commands.map(|command| format!("sd-worker-{command}.1")).into_iter().chain(["sd-worker.1".to_owned()]);
    assert_eq!(names, expected.collect::<Vec<_>>());
    let page = |name: &str| fs::read_to_string(pages.join(name)).unwrap();
    let serve = page("sd-worker-serve.1");
    assert!(serve.contains(".TH sd-worker-serve 1") && serve.contains("SD_WORKER_PORT") && !serve.contains("4321"), "{serve}");
    assert_eq!(String::from_utf8(command(&["man"]).stdout).unwrap(), page("sd-worker.1"));
    let (code, message) = failure(&["man", "/dev/null/man1"]);
    assert!(code == 73 && message.starts_with("error: cannot write /dev/null/man1: "), "{code}: {message}");
}
