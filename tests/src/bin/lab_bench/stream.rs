//! The host's end of streams (`net_load`).

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;

use anyhow::Result;

/// Bytes of a read or a write, as in the guest.
const PIECE: usize = 64 << 10;

/// Serves guests from now on.
///
/// # Returns
/// The port, on all addresses.
pub fn serve() -> Result<u16> {
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                // The guest says what it misses.
                if let Err(error) = transfer(stream) {
                    eprintln!("a stream has ended: {error}");
                }
            });
        }
    });
    Ok(port)
}

fn transfer(mut stream: TcpStream) -> Result<()> {
    let (mut is_sent, mut length) = ([0], [0; 8]);
    stream.read_exact(&mut is_sent)?;
    stream.read_exact(&mut length)?;
    let mut left = u64::from_le_bytes(length);
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let count = left.min(PIECE as u64) as usize;
        let piece = &mut piece[..count];
        match is_sent {
            [0] => stream.write_all(piece)?,
            _ => stream.read_exact(piece)?,
        }
        left -= count as u64;
    }
    if is_sent != [0] {
        stream.write_all(&[0])?;
    }
    Ok(())
}
