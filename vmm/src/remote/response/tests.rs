use proptest::prelude::*;

use super::*;

fn answer(text: &[u8]) -> Result<Response, ResponseError> {
    // A small buffer, so that what is read ends in the middle of anything.
    read(io::BufReader::with_capacity(3, text))
}

fn body(text: &str) -> Vec<u8> {
    answer(text.as_bytes()).unwrap().body
}

fn fault(text: &str) -> String {
    format!("{:?}", answer(text.as_bytes()).unwrap_err())
}

#[test]
fn bodies_end_where_the_server_says() {
    assert_eq!(
        body("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef"),
        b"abc"
    );
    assert_eq!(
        body("HTTP/1.0 200 \r\ncontent-length:0\r\nX: y\r\n\r\nabc"),
        b""
    );
    assert_eq!(body("HTTP/1.1 200 OK\r\n\r\nabc"), b"abc");
    assert_eq!(
        body(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\nB;x=y\r\n01234567890\r\n\
             0\r\nTrailer: x\r\n\r\nrest"
        ),
        b"abc01234567890"
    );
    for status in ["204 No Content", "304 Not Modified"] {
        let text = format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(body(&text), b"");
    }
}

#[test]
fn interim_responses_are_passed_over() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\n";
    let real = "HTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\nx";
    let response = answer(format!("{}{real}", interim.repeat(8)).as_bytes()).unwrap();
    assert_eq!((response.status, &response.body[..]), (404, &b"x"[..]));
    assert_eq!(fault(&interim.repeat(1000)), "Interim");
}

#[test]
fn an_answer_that_is_cut_is_no_answer() {
    assert_eq!(fault(""), "Nothing");
    for text in [
        "H",
        "HTTP/1.1 200 OK",
        "HTTP/1.1 200 OK\r\nA: b\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n",
    ] {
        assert_eq!(fault(text), "Cut", "{text}");
    }
    assert_eq!(
        fault("HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\nabc"),
        "Short { got: 3, announced: 67108864 }"
    );
    assert_eq!(
        fault("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc"),
        "Short { got: 3, announced: 5 }"
    );
}

#[test]
fn lengths_that_are_none_are_refused() {
    for headers in [
        "Content-Length: -1",
        "Content-Length: +1",
        "Content-Length: 1x",
        "Content-Length:",
        "Content-Length: 18446744073709551616",
        "Content-Length: 1, 1",
        "Content-Length: 1\r\nContent-Length: 1",
        "Content-Length: 1\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 1",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: identity",
    ] {
        let fault = fault(&format!("HTTP/1.1 200 OK\r\n{headers}\r\n\r\nx"));
        assert!(fault.starts_with("Header("), "{headers}: {fault}");
    }
}

#[test]
fn chunks_that_are_none_are_refused() {
    for chunks in [
        "x\r\n",
        "-1\r\n",
        "\r\n",
        ";x\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\r\nabc0\r\n\r\n",
        "11111111111111111\r\n",
        &"1".repeat(1000),
    ] {
        let text = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        assert_eq!(fault(&text), "Chunk", "{chunks}");
    }
}

#[test]
fn what_never_ends_is_given_up() {
    let head = "HTTP/1.1 200 OK\r\n";
    let chunked = "Transfer-Encoding: chunked\r\n\r\n";
    assert_eq!(
        fault(&format!("{head}A: {}", "b".repeat(1 << 20))),
        "LongHead"
    );
    assert_eq!(
        fault(&format!("{head}{chunked}0\r\nA: {}", "b".repeat(1 << 20))),
        "LongHead"
    );
    assert_eq!(
        fault(&format!("{head}{}", "A: b\r\n".repeat(1000))),
        "NotHttp(TooManyHeaders)"
    );
    for length in [(64_u64 << 20) + 1, u64::MAX] {
        assert_eq!(
            fault(&format!("{head}Content-Length: {length}\r\n\r\n")),
            "LongBody"
        );
        assert_eq!(fault(&format!("{head}{chunked}{length:x}\r\n")), "LongBody");
    }
    let endless = [head.as_bytes(), b"\r\n"].concat();
    let endless = io::BufReader::new(endless.chain(io::repeat(b'x')));
    assert!(matches!(read(endless), Err(ResponseError::LongBody)));
    // Each chunk is small enough, all of them are not.
    let mut chunks = format!("{head}{chunked}").into_bytes();
    for _ in 0..2 {
        chunks.extend(b"2000001\r\n");
        chunks.extend(vec![b'x'; 0x200_0001]);
        chunks.extend(b"\r\n");
    }
    assert!(matches!(read(&chunks[..]), Err(ResponseError::LongBody)));
}

#[test]
fn what_is_not_http_is_noticed_at_the_end_of_its_first_line() {
    /// Fails the test if more is read than there is.
    struct Waits;
    impl Read for Waits {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("it waits for more");
        }
    }
    for text in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "{\"QMP\": {}}\r\n",
        "HTTP/2 200\r\n",
        "\0\0\0\n",
    ] {
        let reader = io::BufReader::new(text.as_bytes().chain(Waits));
        let error = read(reader).unwrap_err();
        assert!(
            matches!(error, ResponseError::NotHttp(_)),
            "{text}: {error:?}"
        );
    }
}

proptest! {
    /// Nothing that a server may send is a panic.
    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = answer(&bytes);
        for start in ["HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"] {
            let _ = answer(&[start.as_bytes(), &bytes].concat());
        }
    }

    /// Chunks of any sizes are put together.
    #[test]
    fn chunks_make_the_body(chunks in proptest::collection::vec("[a-z\r\n]{1,40}", 0..8)) {
        let mut text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
        for chunk in &chunks {
            text.push_str(&format!("{:X}\r\n{chunk}\r\n", chunk.len()));
        }
        text.push_str("0\r\n\r\n");
        prop_assert_eq!(body(&text), chunks.concat().into_bytes());
    }
}
