//! Whatever a driver asks for, it is answered; and what is read is what was written.

use proptest::prelude::*;

use super::*;
use crate::virtio::testing::RAM;

fn any_engine() -> impl Strategy<Value = EngineChoice> {
    prop::sample::select(ENGINES.to_vec())
}

/// Something to do with sectors: what, from where on, how many, and with which bytes.
fn any_act() -> impl Strategy<Value = (u32, u64, u32, u8)> {
    let kind = prop::sample::select(vec![IN, OUT, FLUSH, DISCARD, WRITE_ZEROES]);
    (kind, 0..140_u64, 0..16_u32, any::<u8>())
}

/// Anything that could be a buffer, mostly where something is.
fn any_buffer() -> impl Strategy<Value = Buffer> {
    let gpa = prop_oneof![
        4 => prop::sample::select(vec![HEADER, DATA, STATUS, 0x1_0000]),
        1 => any::<u64>(),
        1 => (RAM as u64 - 1024)..(RAM as u64 + 1024),
    ];
    let length = prop_oneof![
        4 => prop::sample::select(vec![0, 1, 15, 16, 17, 512, 513, 4096]),
        1 => any::<u32>(),
    ];
    (gpa, length, any::<bool>()).prop_map(|(gpa, length, writable)| Buffer {
        gpa,
        length,
        writable,
    })
}

proptest! {
    #[test]
    fn what_is_read_is_what_was_written(
        engine in any_engine(),
        bounced in any::<bool>(),
        acts in prop::collection::vec(any_act(), 1..30),
    ) {
        let file = disk_of(&pattern(0, SIZE));
        let image = Image::open(&options(file.path())).unwrap();
        let image = if bounced { image.with_alignment(4096, 512) } else { image };
        let mut driver = started(image, engine);
        let mut model = pattern(0, SIZE);
        for (kind, sector, count, seed) in acts {
            let range = sector as usize * 512..(sector as usize + count as usize) * 512;
            let length = count * 512;
            let fits = range.end <= SIZE;
            let status = match kind {
                IN => {
                    let (status, _) = ask(&mut driver, IN, sector, &[writable(DATA + 8, length)]);
                    if fits {
                        prop_assert_eq!(driver.bytes(DATA + 8, length as usize), &model[range]);
                    }
                    status
                }
                OUT => {
                    let bytes = pattern(seed, length as usize);
                    driver.fill(DATA + 8, &bytes);
                    let half = length / 2;
                    let data = [readable(DATA + 8, half), readable(DATA + 8 + u64::from(half), length - half)];
                    let (status, _) = ask(&mut driver, OUT, sector, &data);
                    if fits {
                        model[range].copy_from_slice(&bytes);
                    }
                    status
                }
                FLUSH => {
                    prop_assert_eq!(ask(&mut driver, FLUSH, sector, &[]).0, OK);
                    continue;
                }
                _ => {
                    let status = ask_of_range(&mut driver, kind, (sector, count), 0);
                    if fits {
                        model[range].fill(0);
                    }
                    status
                }
            };
            prop_assert_eq!(status, if fits { OK } else { IO_ERROR });
        }
        prop_assert_eq!(contents(&file), model);
    }

    #[test]
    fn whatever_is_asked_is_answered(
        engine in any_engine(),
        kind in prop_oneof![3 => 0..16_u32, 1 => any::<u32>()],
        sector in prop_oneof![3 => 0..200_u64, 1 => any::<u64>()],
        chains in prop::collection::vec(prop::collection::vec(any_buffer(), 1..16), 1..4),
        noise in prop::collection::vec(any::<u8>(), 64),
    ) {
        let (mut driver, file) = ordinary(engine);
        for chain in chains {
            driver.fill(DATA, &noise);
            put_header(&driver, HEADER, kind, sector);
            driver.make_available(0, 0, &chain);
            driver.kick(0);
            // Some write into the queue itself, and so make of it what they like.
            let is_harmless = chain.iter().all(|buffer| {
                !buffer.writable || buffer.gpa >= HEADER && buffer.gpa < u64::MAX - (1 << 33)
            });
            if !is_harmless {
                std::thread::sleep(std::time::Duration::from_micros(200));
                break;
            }
            prop_assert_eq!(driver.wait_used(0).0, 0);
            prop_assert_eq!(driver.status(), 15);
        }
        driver.set_status(0);
        prop_assert_eq!(driver.status(), 0);
        prop_assert_eq!(file.as_file().metadata().unwrap().len(), SIZE as u64);
    }
}
