//! What a program of the host says before it has a connection: `CONNECT <port>` and a line feed.

use super::backend::Stream;

/// The longest line that is read, with its end. The longest that is needed has 19 bytes.
const LONGEST: usize = 32;

/// What a client has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// This port is wanted.
    Port(u32),
    /// Not enough yet.
    NotYet,
    /// Something else, or nothing and it is gone.
    Wrong,
}

/// Reads a client's line, and nothing behind it.
pub fn read(stream: &Stream) -> Greeting {
    let mut bytes = [0; LONGEST];
    let said = match stream.peek(&mut bytes) {
        Ok(0) => return Greeting::Wrong,
        Ok(count) => bytes.get(..count).unwrap_or_default(),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Greeting::NotYet,
        Err(_) => return Greeting::Wrong,
    };
    let Some(end) = said.iter().position(|byte| *byte == b'\n') else {
        return match said.len() < LONGEST {
            true => Greeting::NotYet,
            false => Greeting::Wrong,
        };
    };
    let (line, _) = said.split_at(end);
    let Some(port) = port_of(line) else {
        return Greeting::Wrong;
    };
    // What was looked at is there.
    let mut line = [0; LONGEST];
    let taken = line.get_mut(..=end).map(|line| stream.read(line));
    match taken {
        Some(Ok(count)) if count == end + 1 => Greeting::Port(port),
        _ => Greeting::Wrong,
    }
}

/// The port of a line without its end. Clients of other VMMs may use small letters, and more white space.
fn port_of(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let (word, digits) = (words.next()?, words.next()?);
    // Numbers may have signs elsewhere.
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    let is_whole = is_number && word.eq_ignore_ascii_case("connect") && words.next().is_none();
    is_whole.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_decimal_numbers_of_32_bits() {
        for (line, port) in [
            ("CONNECT 0", Some(0)),
            ("CONNECT 1234", Some(1234)),
            ("CONNECT 4294967295", Some(u32::MAX)),
            ("CONNECT 4294967296", None),
            ("CONNECT +1", None),
            ("CONNECT -1", None),
            ("CONNECT 0x10", None),
            ("connect  1\r", Some(1)),
            ("CONNECT 1 2", None),
            ("CONNECT ", None),
            ("CONNECT", None),
            ("CONNECT1", None),
            ("", None),
        ] {
            assert_eq!(port_of(line.as_bytes()), port, "{line:?}");
        }
        assert_eq!(port_of(b"CONNECT \xff"), None);
    }
}
