//! Connections that misbehave.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::{
    fake::FakeWorker,
    support::{Worker, small},
};

/// Reads until the worker closes the connection. A connection that stays open hangs the test.
fn rest(mut socket: TcpStream) -> String {
    let mut answer = Vec::new();
    // A connection that is closed with unread bytes of ours is reset.
    let _ = socket.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_silent_client_is_disconnected() {
    let worker = Worker::ready(&["--client-timeout", "1"]);
    let connect = |sent: &str| {
        let mut socket = TcpStream::connect(worker.address()).unwrap();
        socket.write_all(sent.as_bytes()).unwrap();
        socket
    };
    let head = "POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let silent = [
        ("nothing", connect("")),
        ("one letter, as POST and PRI have it", connect("P")),
        ("half a head", connect(&head[..70])),
        ("HTTP/2 without a request", connect("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")),
    ];
    let half_a_body = connect(&format!("{head}content-length: 50\r\n\r\n{{\"prompt\":"));
    let answered = connect("GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n");
    for (name, socket) in silent {
        let answer = rest(socket);
        assert!(!answer.contains("200 OK"), "{name}: {answer}");
    }
    let answer = rest(half_a_body);
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("\"code\":\"body_timed_out\""), "{answer}");
    let answer = rest(answered);
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("{\"status\":\"alive\"}"), "{answer}");
}

#[tokio::test]
async fn a_client_may_be_silent_while_it_waits() {
    let patience = Duration::from_secs(1);
    let worker = FakeWorker::start_with(8, patience).await;
    let held = worker.hold();
    let waiting = worker.begin(worker.request(&json!({ "prompt": "hang" }))).await;
    tokio::time::sleep(3 * patience).await;
    drop(held);
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
}

/// Unread bytes fill the buffers of both ends; from then on the worker's system measures the time.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected() {
    let worker = Worker::ready(&["--client-timeout", "1"]);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let address: std::net::SocketAddr = worker.url("").trim_start_matches("http://").parse().unwrap();
    socket.connect(&address.into()).unwrap();
    let mut socket = TcpStream::from(socket);
    let mut request = small("a fox");
    for (name, value) in
        [("n", json!(10)), ("stream", json!(true)), ("partial_images", json!(3)), ("steps", json!(4)), ("size", json!("512x512"))]
    {
        request[name] = value;
    }
    let body = request.to_string();
    let head = "POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    write!(socket, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
    worker.wait_for_metric("sdw_cancelled_total{reason=\"disconnect\"}", |value| value > 0.0).await;
}

/// A client that answers pings, and reads nothing of one stream.
#[tokio::test]
async fn an_unread_stream_is_reset() {
    let worker = Worker::ready(&["--client-timeout", "5"]);
    let socket = tokio::net::TcpStream::connect(worker.address()).await.unwrap();
    let (mut client, connection) = h2::client::Builder::new().initial_window_size(1000).handshake::<_, bytes::Bytes>(socket).await.unwrap();
    tokio::spawn(connection);
    let mut get = async |path: &str| {
        let request = axum::http::Request::get(worker.url(path)).body(()).unwrap();
        client.send_request(request, true).unwrap().0.await.unwrap().into_body()
    };
    let mut unread = get("/openapi.json").await;
    let first = unread.data().await.unwrap().unwrap();
    assert_eq!(first.len(), 1000);
    // A stream that is read meanwhile comes to its end.
    let (mut read, mut length) = (get("/openapi.json").await, 0);
    while let Some(piece) = read.data().await {
        let piece = piece.unwrap();
        length += piece.len();
        read.flow_control().release_capacity(piece.len()).unwrap();
    }
    assert!(length > 20_000);
    let lost = tokio::time::timeout(Duration::from_mins(1), unread.data()).await.expect("it is let go");
    assert!(lost.unwrap().unwrap_err().is_reset());
    assert!(get("/livez").await.data().await.unwrap().is_ok(), "the connection is there for others");
}

/// An answer that its client has not read yet counts as activity, although its request is done.
#[tokio::test]
async fn an_answer_on_its_way_is_not_cut_off_for_others() {
    let worker = Worker::ready(&["--max-connections", "1", "--client-timeout", "600"]);
    let mut socket = TcpStream::connect(worker.address()).unwrap();
    let body = json!({ "prompt": "a fox", "steps": 1, "n": 4, "size": "1024x1024" }).to_string();
    let head = "POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    write!(socket, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = vec![0; 4096];
    let mut length = socket.read(&mut answer).unwrap();
    let mut other = TcpStream::connect(worker.address()).unwrap();
    other.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    // Long enough for an idle connection to be closed for the other.
    std::thread::sleep(Duration::from_secs(3));
    answer.truncate(length);
    length = socket.read_to_end(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer);
    let expected: usize = text.split("content-length: ").nth(1).unwrap().split('\r').next().unwrap().parse().unwrap();
    let (head, sent) = text.split_once("\r\n\r\n").unwrap();
    assert_eq!(sent.len(), expected, "{length} bytes after {head}");
    assert!(rest(other).starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn idle_connections_make_room_for_others() {
    let worker = Worker::ready(&["--max-connections", "4", "--client-timeout", "600"]);
    let idle: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut socket = TcpStream::connect(worker.address()).unwrap();
            socket.write_all(b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").unwrap();
            socket.read_exact(&mut [0; 12]).unwrap();
            socket
        })
        .collect();
    // An idle connection may stay for ten minutes, unless others wait.
    let get = tokio::time::timeout(Duration::from_mins(2), worker.get("/livez"));
    assert_eq!(get.await.expect("an idle connection makes room").status(), 200);
    drop(idle);
}

/// The system's own probes notice a client that is gone without a word.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn connections_are_probed() {
    let worker = Worker::ready(&[]);
    let client = TcpStream::connect(worker.address()).unwrap();
    let (server, client) = (worker.address().1, client.local_addr().unwrap().port());
    let started = Instant::now();
    loop {
        assert!(started.elapsed() < Duration::from_mins(1), "no probe is planned");
        let sockets = fs::read_to_string("/proc/net/tcp").unwrap();
        // Fields: local address, remote address, state, queues, and the timer, of which 2 is that of the probes.
        let ours = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|fields| {
            fields.len() > 5 && fields[1].ends_with(&format!(":{server:04X}")) && fields[2].ends_with(&format!(":{client:04X}"))
        });
        if ours.is_some_and(|fields| fields[5].starts_with("02:")) {
            break;
        }
    }
}

/// A connection whose request was refused while its body was still to be sent.
fn refused(worker: &Worker, length: usize) -> TcpStream {
    let mut socket = TcpStream::connect(worker.address()).unwrap();
    let head = format!(
        "POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).unwrap();
    let mut start = [0; 12];
    socket.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");
    socket
}

/// A client that is refused while it sends reads the answer, and may go on with the connection.
#[tokio::test]
async fn a_refused_body_is_read_and_forgotten() {
    let worker = Worker::ready(&[]);
    let mut socket = refused(&worker, 60 << 20);
    for _ in 0..60 {
        socket.write_all(&vec![b' '; 1 << 20]).unwrap();
    }
    socket.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let answers = rest(socket);
    assert!(answers.contains("HTTP/1.1 200"), "{answers}");
}

#[tokio::test]
async fn a_refused_body_is_not_waited_for_as_long_as_the_client_likes() {
    let worker = Worker::ready(&["--client-timeout", "1"]);
    let mut socket = refused(&worker, 60 << 20);
    // The client never pauses for long.
    let started = Instant::now();
    while socket.write_all(b" ").is_ok() {
        assert!(started.elapsed() < Duration::from_mins(1), "the client may go on for ever");
        std::thread::sleep(Duration::from_millis(50));
    }
}
