//! Whatever guests and clients do, the device has no more than it may have; and bytes come as they were
//! sent.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::virtio::vsock::packet::HOST_CID;

/// Something that a guest or a program of the host does.
#[derive(Clone, Debug)]
enum Act {
    /// A packet of the guest: which connection, what, flags, bytes it says it has, bytes it has, credit.
    Packet(u8, u16, u32, u32, u16, u32, u32),
    /// The same, with any header.
    Noise([u8; HEADER]),
    /// A client connects, and says so much of its line.
    Client(u8),
    /// A client writes.
    Write(u8, u16),
    /// A client reads.
    Read(u8),
    /// A client goes.
    Leave(u8),
    /// The guest takes packets.
    Take(u8),
    Reset,
}

fn any_act() -> impl Strategy<Value = Act> {
    let op = prop_oneof![8 => 0..9_u16, 1 => any::<u16>()];
    let length = prop_oneof![4 => 0..2000_u32, 1 => any::<u32>()];
    let packet = (
        any::<u8>(),
        op,
        0..5_u32,
        length,
        0..2000_u16,
        0..100_000_u32,
        0..10_000_u32,
    );
    prop_oneof![
        10 => packet.prop_map(|(which, op, flags, says, has, buffer, forwarded)| {
            Act::Packet(which, op, flags, says, has, buffer, forwarded)
        }),
        1 => any::<[u8; HEADER]>().prop_map(Act::Noise),
        4 => any::<u8>().prop_map(Act::Client),
        4 => (any::<u8>(), any::<u16>()).prop_map(|(which, bytes)| Act::Write(which, bytes)),
        2 => any::<u8>().prop_map(Act::Read),
        2 => any::<u8>().prop_map(Act::Leave),
        6 => (1..40_u8).prop_map(Act::Take),
        1 => Just(Act::Reset),
    ]
}

/// Those that the guest may know of: of clients, and of two ports that are listened on.
struct World {
    rig: Rig,
    _listeners: [UnixListener; 2],
    clients: VecDeque<UnixStream>,
    known: VecDeque<Peer>,
}

impl World {
    fn new() -> Self {
        let rig = Rig::new();
        let listeners = [rig.listen(1), rig.listen(2)];
        let mut world = Self {
            rig,
            _listeners: listeners,
            clients: VecDeque::new(),
            known: VecDeque::new(),
        };
        world.forget();
        world
    }

    fn forget(&mut self) {
        self.known.clear();
        for guest_port in 0..3 {
            for host_port in 1..4 {
                self.known.push_back(Peer {
                    guest_port,
                    host_port,
                    ..Peer::default()
                });
            }
        }
    }

    fn client(&mut self, which: u8) -> Option<&mut UnixStream> {
        let count = self.clients.len().max(1);
        self.clients.get_mut(usize::from(which) % count)
    }

    fn send(&mut self, header: [u8; HEADER], bytes: u16) {
        self.rig.driver.fill(TX_HEADER, &header);
        let buffers = [readable(TX_HEADER, 44), readable(TX_DATA, bytes.into())];
        self.rig.driver.make_available(TX, 0, &buffers);
        self.rig.driver.kick(TX);
        // It may have to take refusals first.
        let start = Instant::now();
        while self.rig.driver.take_used(TX).is_none() {
            self.take(1);
            assert!(start.elapsed() < PATIENCE, "the packet is not taken");
        }
    }

    fn take(&mut self, count: u8) {
        for _ in 0..count {
            let Some((header, _)) = self.rig.try_receive() else {
                return;
            };
            if header.op == op::REQUEST {
                self.known.push_front(Peer::of(&header));
                self.known.truncate(20);
            }
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Packet(which, op, flags, says, has, buffer, forwarded) => {
                let peer = self.known[usize::from(which) % self.known.len()];
                let header = Header {
                    flags,
                    len: says,
                    buf_alloc: buffer,
                    fwd_cnt: forwarded,
                    ..peer.header(op)
                };
                self.send(header.to_bytes(), has);
            }
            Act::Noise(bytes) => {
                let header = Header {
                    src_cid: CID.into(),
                    dst_cid: HOST_CID,
                    ..Header::from_bytes(&bytes)
                };
                self.send(header.to_bytes(), 100);
            }
            Act::Client(said) => {
                let mut client = self.rig.client();
                client.set_nonblocking(true).unwrap();
                let line = format!("CONNECT {}\nx", said % 3);
                let _ = client.write(&line.as_bytes()[..usize::from(said) % (line.len() + 1)]);
                self.clients.push_back(client);
                if self.clients.len() > 20 {
                    self.clients.pop_front();
                }
            }
            Act::Write(which, bytes) => {
                if let Some(client) = self.client(which) {
                    let _ = client.write(&vec![1; bytes.into()]);
                }
            }
            Act::Read(which) => {
                if let Some(client) = self.client(which) {
                    let _ = client.read(&mut [0; 1000]);
                }
            }
            Act::Leave(which) => {
                let count = self.clients.len().max(1);
                self.clients.remove(usize::from(which) % count);
            }
            Act::Take(count) => self.take(count),
            Act::Reset => {
                self.rig.start();
                self.forget();
            }
        }
    }
}

proptest! {
    #[test]
    fn whatever_is_done_it_goes_on(acts in prop::collection::vec(any_act(), 1..60)) {
        let mut world = World::new();
        for act in acts {
            world.act(act);
            prop_assert_eq!(world.rig.driver.status(), 15);
        }
        // A device that has been through all that works.
        world.clients.clear();
        world.rig.start();
        world.rig.check();
    }

    #[test]
    fn bytes_come_as_they_were_sent(
        to_guest in prop::collection::vec(1..9000_usize, 0..20),
        to_host in prop::collection::vec(1..9000_usize, 0..20),
        buffer in 1..20_000_u32,
        reads in prop::collection::vec(1..5000_usize, 1..10),
    ) {
        let mut rig = Rig::new();
        let (mut client, mut peer) = rig.connect(1);
        client.set_nonblocking(true).unwrap();
        peer.buffer = buffer;
        rig.send(peer.header(op::CREDIT_UPDATE), b"");
        let to_guest = pattern(1, to_guest.iter().sum());
        let sizes = to_host;
        let to_host = pattern(2, sizes.iter().sum());
        let (mut written, mut sent) = (0, 0);
        let (mut guest_got, mut host_got) = (Vec::<u8>::new(), Vec::<u8>::new());
        let mut forwarded = 0;
        let mut sizes = sizes.into_iter().peekable();
        let mut reads = reads.into_iter().cycle();
        let start = Instant::now();
        while guest_got.len() < to_guest.len() || host_got.len() < to_host.len() {
            prop_assert!(start.elapsed() < PATIENCE, "bytes do not come");
            let rest = &to_guest[written..];
            written += client.write(rest).unwrap_or(0);
            let credit = BUFFER as usize - (sent - forwarded);
            if let Some(size) = sizes.next_if(|size| *size <= credit) {
                rig.send(peer.data(size), &to_host[sent..sent + size]);
                sent += size;
            }
            let mut bytes = vec![0; reads.next().unwrap()];
            let count = client.read(&mut bytes).unwrap_or(0);
            host_got.extend(&bytes[..count]);
            while let Some((header, data)) = rig.try_receive() {
                forwarded = header.fwd_cnt as usize;
                guest_got.extend(data);
                prop_assert!(guest_got.len() - peer.forwarded as usize <= buffer as usize);
                if header.op == op::CREDIT_REQUEST {
                    peer.forwarded = guest_got.len() as u32;
                    rig.send(peer.header(op::CREDIT_UPDATE), b"");
                }
            }
        }
        prop_assert!(guest_got == to_guest && host_got == to_host);
    }
}
