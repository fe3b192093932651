//! Requests through proxies, by curl's rules: the environment names a proxy for each scheme, and none serves this machine.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    process::{Command, Stdio},
    sync::mpsc::{Receiver, channel},
};

use crate::support::{Worker, binary};

/// A server that records the first line and the headers of each request, and answers with 200.
fn listener() -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (sender, requests) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map(Result::unwrap) {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut head, mut line) = (String::new(), String::new());
            while reader.read_line(&mut line).is_ok_and(|count| count > 2) {
                head += &line;
                line.clear();
            }
            let length = head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
            let _ = reader.take(length).read_to_end(&mut Vec::new());
            let mut stream = stream;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let _ = sender.send(head);
        }
    });
    (address, requests)
}

/// The binary without the proxy variables that this test may inherit.
fn without_proxies() -> Command {
    let mut command = binary();
    for scheme in ["http", "https", "all", "no"] {
        let name = format!("{scheme}_proxy");
        command.env_remove(name.to_uppercase()).env_remove(name);
    }
    command
}

#[test]
fn an_orchestrator_on_this_machine_hears_of_the_worker_whatever_the_proxies() {
    for variables in [&["HTTPS_PROXY"][..], &["https_proxy"], &["HTTP_PROXY"], &["http_proxy"], &["ALL_PROXY", "all_proxy"]] {
        let ((orchestrator, heard), (proxy, asked)) = (listener(), listener());
        let mut command = without_proxies();
        command.envs(variables.iter().map(|name| (*name, proxy.as_str())));
        let callback = format!("{orchestrator}/ready");
        let worker = Worker::listening_as(command, &["--callback-url", &callback, "--queen-url", &orchestrator]);
        let mut paths: Vec<String> = Vec::new();
        while !["/ready", "/v1/worker-heartbeat"].iter().all(|path| paths.iter().any(|heard| heard == path)) {
            paths.push(heard.recv().unwrap().split(' ').nth(1).unwrap().to_owned());
        }
        drop(worker);
        assert_eq!(asked.try_recv().ok(), None, "{variables:?}");
    }
}

/// A proxy forwards a plain request with the whole URL in its first line; few open a tunnel for it.
#[test]
fn a_plain_request_is_forwarded_and_another_goes_through_a_tunnel() {
    let (proxy, asked) = listener();
    let proxy = proxy.replace("http://", "http://me:pass%20word@");
    let mut command = without_proxies();
    command.env("http_proxy", &proxy).env("HTTPS_PROXY", &proxy).env("NO_PROXY", "10.0.0.0/8");
    let args = ["--callback-url", "http://orchestrator.example:81/ready?x=1", "--queen-url", "https://queen.example"];
    let mut worker = Worker::listening_as(command, &args);
    let mut requests = Vec::new();
    while requests.len() < 2
        || !["POST http://", "CONNECT "].iter().all(|start| requests.iter().any(|head: &String| head.starts_with(start)))
    {
        requests.push(asked.recv().unwrap());
    }
    let find = |start: &str| requests.iter().find(|head| head.starts_with(start)).unwrap().to_lowercase();
    let plain = find("POST http://");
    assert!(plain.starts_with("post http://orchestrator.example:81/ready?x=1 http/1.1\r\n"), "{plain}");
    assert!(plain.contains("\r\nhost: orchestrator.example:81\r\n"), "{plain}");
    let tunnel = find("CONNECT ");
    assert!(tunnel.starts_with("connect queen.example:443 http/1.1\r\n"), "{tunnel}");
    // me:pass word
    for head in [plain, tunnel] {
        assert!(head.contains(&"proxy-authorization: basic bWU6cGFzcyB3b3Jk".to_lowercase()), "{head}");
    }
    worker.signal("TERM");
    worker.wait();
    let log = worker.stderr();
    assert!(!log.contains("pass"), "{log}");
}

#[test]
fn a_proxy_that_makes_no_sense_is_said() {
    let mut command = without_proxies();
    command.env("http_proxy", "gopher://me:secret@proxy").args(["--port", "0", "--queen-url", "http://queen.example"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let said = lines.find(|line| line.contains("the heartbeat cannot be delivered")).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(said.contains("the proxy in the variable http_proxy cannot be used") && !said.contains("secret"), "{said}");
}
