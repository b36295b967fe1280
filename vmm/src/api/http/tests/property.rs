//! Any bytes, in any pieces.

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Instant;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::reader::{NoRequest, Reader};
use super::super::sys::{self, Event};
use super::{LONG, Limits};

/// What was read: requests, and the status of a refusal.
type Read = (Vec<(String, String, Vec<u8>)>, Option<u16>);

/// Reads what a client sends in `pieces`, each once the last one has been read.
fn read(pieces: &[Vec<u8>]) -> Read {
    let (mut client, server) = UnixStream::pair().unwrap();
    let stop = Event::new().unwrap();
    let limits = Limits {
        request: LONG,
        ..Limits::default()
    };
    thread::scope(|scope| {
        scope.spawn(move || {
            for piece in pieces {
                if client.write_all(piece).is_err() {
                    return;
                }
                while sys::unread(&client).unwrap() > 0 {
                    thread::yield_now();
                }
            }
            let _ = client.shutdown(Shutdown::Write);
        });
        let read = read_all(&server, &stop, &limits);
        // The client's thread ends by that, if it has more to send.
        drop(server);
        read
    })
}

fn read_all(server: &UnixStream, stop: &Event, limits: &Limits) -> Read {
    let mut requests = Vec::new();
    loop {
        let start = Instant::now();
        let read = Reader::new(server, stop.as_fd(), limits).read();
        assert!(start.elapsed() < limits.request, "it hangs");
        match read {
            Ok((_, request)) => {
                let method = request.method.to_string();
                requests.push((method, request.path, request.body));
            }
            Err(NoRequest::Gone) => return (requests, None),
            Err(NoRequest::Refused(refusal)) => return (requests, Some(refusal.status)),
        }
    }
}

/// Parts of requests, and what is not.
fn fragment() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "GET ",
        "PUT ",
        "/a?b ",
        "HTTP/1.1",
        "HTTP/1.0",
        "\r\n",
        "\r\n\r\n",
        "\n",
        "\r",
        ": ",
        "Content-Length: 3",
        "Content-Length: 5\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n",
        "Expect: 100-continue",
        "Connection: close",
        "3\r\nabc\r\n",
        "0\r\n\r\n",
        "abc",
        "PUT /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nabcde",
        "GET /b HTTP/1.1\r\n\r\n",
        "PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET /d HTTP/1.0\r\n",
    ]);
    prop_oneof![
        4 => known.prop_map(|text: &str| text.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..20),
    ]
}

/// `bytes` cut at `cuts`.
fn cut(bytes: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.push(bytes.len());
    cuts.sort_unstable();
    let mut pieces = Vec::new();
    let mut start = 0;
    for cut in cuts {
        pieces.push(bytes[start..cut].to_vec());
        start = cut;
    }
    pieces
}

proptest! {
    #[test]
    fn pieces_make_no_difference(
        fragments in vec(fragment(), 0..20),
        cuts in vec(any::<usize>(), 0..12),
    ) {
        let bytes = fragments.concat();
        let whole = read(std::slice::from_ref(&bytes));
        let pieces = read(&cut(&bytes, &cuts));
        prop_assert_eq!(whole, pieces);
    }

    #[test]
    fn requests_are_read_as_they_were_sent(
        bodies in vec((vec(any::<u8>(), 0..200), any::<bool>()), 1..6),
        cuts in vec(any::<usize>(), 0..12),
    ) {
        let mut bytes = Vec::new();
        let mut sent = Vec::new();
        for (index, (body, in_chunks)) in bodies.into_iter().enumerate() {
            if in_chunks {
                write!(bytes, "PUT /{index} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
                for chunk in body.chunks(50) {
                    write!(bytes, "{:x}\r\n", chunk.len()).unwrap();
                    bytes.extend_from_slice(chunk);
                    bytes.extend_from_slice(b"\r\n");
                }
                bytes.extend_from_slice(b"0\r\n\r\n");
            } else {
                let length = body.len();
                write!(bytes, "PUT /{index} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n").unwrap();
                bytes.extend_from_slice(&body);
            }
            sent.push(("PUT".to_owned(), format!("/{index}"), body));
        }
        prop_assert_eq!(read(&cut(&bytes, &cuts)), (sent, None));
    }
}
