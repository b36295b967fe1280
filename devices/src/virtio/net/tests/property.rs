//! Whatever a guest puts into its queues, the device stands it; and frames come as they were sent.

use proptest::prelude::*;

use super::*;
use crate::virtio::testing::RAM;

/// Anything that could be a buffer, mostly where something is.
fn any_buffer() -> impl Strategy<Value = Buffer> {
    let gpa = prop_oneof![
        4 => prop::sample::select(vec![DATA, DATA + 0x800, 0x7_0000]),
        1 => any::<u64>(),
        1 => (RAM as u64 - 1024)..(RAM as u64 + 1024),
        1 => 0x1_0000..0x3_0000_u64,
    ];
    let length = prop_oneof![
        4 => prop::sample::select(vec![0, 1, 2, 11, 12, 13, 100, 1526, 4096, 65562]),
        1 => any::<u32>(),
    ];
    (gpa, length, any::<bool>()).prop_map(|(gpa, length, writable)| Buffer {
        gpa,
        length,
        writable,
    })
}

/// A descriptor: where, what flags, and what comes next.
fn any_descriptor() -> impl Strategy<Value = (Buffer, u16, u16)> {
    let next = prop_oneof![8 => 0..16_u16, 1 => any::<u16>()];
    (any_buffer(), 0..8_u16, next)
}

proptest! {
    #[test]
    fn whatever_is_in_the_queues_the_device_stands_it(
        without in prop::sample::select(vec![0, feature::MRG_RXBUF, feature::MQ]),
        queue in 0..5_usize,
        descriptors in prop::collection::vec(any_descriptor(), 16),
        heads in prop::collection::vec(prop_oneof![8 => 0..16_u16, 1 => any::<u16>()], 1..24),
        noise in prop::collection::vec(any::<u8>(), 64),
    ) {
        let (mut driver, peer, _backend) = idle(2);
        driver.start(without, 16);
        driver.fill(DATA, &noise);
        // All pairs, if the driver knows of several.
        driver.fill(0x7_0000, &[4, 0, 2, 0]);
        for ((buffer, flags, next), at) in descriptors.into_iter().zip(0..) {
            driver.describe(queue, at, buffer, flags, next);
        }
        for head in heads {
            driver.offer(queue, head);
        }
        for length in [60, 1514, 20_000] {
            peer.send_to(0, &frame(1, length));
            peer.send_to(1, &frame(1, length));
        }
        driver.kick(queue);
        std::thread::sleep(Duration::from_micros(200));
        driver.function.pause();
        driver.function.resume();
        driver.set_status(0);
        prop_assert_eq!(driver.status(), 0);
        prop_assert_eq!(peer.attached(), NONE);
        while peer.take_from(0).is_some() || peer.take_from(1).is_some() {}
        driver.start(0, 16);
        transmit(&mut driver, &frame(2, 60));
        prop_assert_eq!(peer.wait(), frame(2, 60));
        post(&mut driver, 0, 200);
        driver.kick(RX);
        peer.send(&frame(3, 100));
        prop_assert_eq!(take_frame(&mut driver).0, frame(3, 100));
    }

    #[test]
    fn frames_come_as_they_were_sent(
        merged in any::<bool>(),
        without in prop::sample::select(vec![0, feature::GUEST_SEGMENTS | feature::GUEST_ECN]),
        buffers in prop::collection::vec(prop_oneof![1 => 12..100_u32, 2 => 1526..4096_u32], 32),
        lengths in prop::collection::vec(1..6000_usize, 1..8),
    ) {
        let without = without | if merged { 0 } else { feature::MRG_RXBUF };
        let (mut driver, peer, _backend) = started(without, 32);
        for (length, seed) in lengths.iter().zip(0..) {
            peer.send(&frame(seed, *length));
        }
        let total: u32 = buffers.iter().sum();
        for (length, number) in buffers.iter().zip(0..) {
            post(&mut driver, number, *length);
            driver.kick(RX);
        }
        let mut room = total as usize;
        let mut at = 0;
        for (length, seed) in lengths.iter().zip(0..) {
            let whole = length + HEADER;
            if merged {
                // A frame has whole buffers.
                let mut left = whole;
                while left > 0 && at < buffers.len() {
                    let bytes = buffers[at] as usize;
                    left = left.saturating_sub(bytes);
                    room -= bytes;
                    at += 1;
                }
                if left > 0 {
                    break;
                }
            } else if buffers.get(at).is_none_or(|bytes| (*bytes as usize) < whole) {
                // It is lost, if there is a buffer at all.
                continue;
            } else {
                at += 1;
            }
            prop_assert_eq!(take_frame(&mut driver).0, frame(seed, *length));
        }
        prop_assert!(room <= total as usize);
        prop_assert_eq!(driver.status(), 15);
    }
}
