//! Drivers that property tests make: most of them set a device up by the rules, and then break some.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::program::{
    BUFFER_COUNT, FIRST_SPECIAL, Length, MOST_PARTS, Part, Place, Program, Step, flag,
};

fn any_place() -> impl Strategy<Value = Place> {
    prop_oneof![
        12 => (0..BUFFER_COUNT).prop_map(|slot| Place::Buffer { slot, delta: 0 }),
        2 => (0..BUFFER_COUNT, any::<i8>()).prop_map(|(slot, delta)| Place::Buffer { slot, delta }),
        1 => any::<u8>().prop_map(|slot| Place::Table { slot }),
        1 => (0..3_u8, 0..3_u8, 0..512_u16)
            .prop_map(|(queue, part, offset)| Place::Queue { queue, part, offset }),
        1 => (-600..600_i16).prop_map(|delta| Place::End { delta }),
        2 => (-600..600_i16).prop_map(|delta| Place::Seam { delta }),
        1 => any::<u64>().prop_map(Place::Any),
    ]
}

/// Where the parts of a queue are: mostly where nothing else is.
fn any_ring() -> impl Strategy<Value = Place> {
    prop_oneof![
        4 => (0..BUFFER_COUNT / 8).prop_map(|slot| Place::Buffer { slot: slot * 8, delta: 0 }),
        1 => (0..3_u8, 0..3_u8, 0..64_u16)
            .prop_map(|(queue, part, at)| Place::Queue { queue, part, offset: at * 16 }),
        1 => (-64..64_i16).prop_map(|at| Place::Seam { delta: at * 16 }),
        1 => (-64..64_i16).prop_map(|at| Place::End { delta: at * 16 }),
        1 => any::<u64>().prop_map(Place::Any),
    ]
}

fn any_length() -> impl Strategy<Value = Length> {
    prop_oneof![
        8 => select(vec![0, 1, 2, 4, 10, 12, 15, 16, 17, 44, 64, 511, 512, 513, 1024, 4096]),
        2 => 0..0x2000_u16,
        1 => FIRST_SPECIAL..=u16::MAX,
        1 => any::<u16>(),
    ]
    .prop_map(Length)
}

fn any_part() -> impl Strategy<Value = Part> {
    let flags = prop_oneof![
        6 => Just(0),
        8 => Just(flag::WRITABLE),
        1 => 0..16_u8,
    ];
    let content = prop_oneof![1 => Just(0), 2 => 1..40_u8];
    (any_place(), any_length(), flags, content).prop_map(|(at, length, flags, content)| Part {
        at,
        length,
        flags,
        content,
    })
}

/// Most devices have two or three queues, and none has more than six.
fn queue() -> impl Strategy<Value = u8> {
    0..6_u8
}

/// A request as one might be: what the device reads, what it writes, and a byte to say how it went; or one
/// of both alone, as frames and packets are.
fn sound_chain() -> impl Strategy<Value = Step> {
    // The last one is 64 KiB, two of which are more than any frame.
    let readable = select(vec![16, 64, 512, 1024, 1024, 0xfff3]);
    let readable = vec((0..30_u8, readable), 1..4);
    let writable = vec(select(vec![64, 512, 1024_u16]), 0..4);
    // Headers of disks, of sockets, and of frames, and commands to a network interface.
    let header =
        prop_oneof![6 => Just(16), 1 => Just(44), 1 => Just(12), 2 => Just(4), 1 => Just(10)];
    let kinds = select(vec![
        (true, true),
        (true, true),
        (true, false),
        (false, true),
    ]);
    (
        (queue(), 0..16_u8, any::<bool>(), kinds),
        readable,
        writable,
        (1..30_u8, header),
    )
        .prop_map(|(place, readable, writable, (header, length))| {
            let (queue, first, indirect, (reads, writes)) = place;
            let readable = readable.into_iter().skip(1);
            let readable = [(header, length)].into_iter().chain(readable);
            let readable = readable.map(|(content, length)| (length, 0, content));
            let writable = writable.into_iter().chain([1]);
            let writable = writable.map(|length| (length, flag::WRITABLE, 0));
            let parts = readable.filter(|_| reads);
            let parts = parts.chain(writable.filter(|_| writes));
            let parts = parts.zip(1_u8..).map(|((length, flags, content), slot)| {
                let slot = first * 8 % 0x70 + slot;
                Part {
                    at: Place::Buffer { slot, delta: 0 },
                    length: Length(length),
                    flags,
                    content,
                }
            });
            Step::Chain {
                queue,
                first,
                indirect,
                parts: parts.collect(),
            }
        })
}

fn any_register() -> impl Strategy<Value = u16> {
    prop_oneof![
        6 => 0..0x38_u16,
        1 => Just(0x1000_u16),
        2 => 0x2000..0x2060_u16,
        1 => 0x3000..0x3010_u16,
        1 => 0x4000..0x4040_u16,
        1 => any::<u16>(),
    ]
}

fn queue_steps() -> impl Strategy<Value = Step> {
    let chain = (
        queue(),
        0..16_u8,
        any::<bool>(),
        vec(any_part(), 0..MOST_PARTS),
    );
    prop_oneof![
        8 => sound_chain(),
        6 => chain.prop_map(|(queue, first, indirect, parts)| Step::Chain {
            queue,
            first,
            indirect,
            parts,
        }),
        8 => queue().prop_map(|queue| Step::Kick { queue }),
        1 => queue().prop_map(|queue| Step::Notify { queue }),
        4 => any::<u8>().prop_map(|what| Step::Host { what }),
        2 => (queue(), 0..20_u16, any_place(), any_length(), 0..8_u16, 0..20_u16).prop_map(
            |(queue, at, buffer, length, flags, next)| Step::Describe {
                queue,
                at,
                buffer,
                length,
                flags,
                next,
            }
        ),
        1 => (any_place(), vec(any::<u8>(), 0..64))
            .prop_map(|(at, bytes)| Step::Fill { at, bytes }),
        1 => (queue(), prop_oneof![0..20_u16, any::<u16>()])
            .prop_map(|(queue, head)| Step::Offer { queue, head }),
        1 => (queue(), prop_oneof![0..20_u16, any::<u16>()])
            .prop_map(|(queue, by)| Step::Jump { queue, by }),
        1 => (queue(), any::<u16>()).prop_map(|(queue, value)| Step::Event { queue, value }),
    ]
}

fn device_steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (any_register(), 0..9_u8, any::<u64>())
            .prop_map(|(offset, width, value)| Step::Write { offset, width, value }),
        1 => (any_register(), 0..9_u8).prop_map(|(offset, width)| Step::Read { offset, width }),
        1 => (0..0x100_u16, 0..3_u8, any::<u32>())
            .prop_map(|(offset, width, value)| Step::WriteConfig { offset, width, value }),
        1 => (0..0x100_u16, 0..3_u8)
            .prop_map(|(offset, width)| Step::ReadConfig { offset, width }),
        1 => (queue(), prop_oneof![3 => select(vec![1, 4, 16, 64_u16]), 1 => any::<u16>()],
            any_ring(), any_ring(), any_ring())
            .prop_map(|(queue, size, descriptors, available, used)| Step::SetUp {
                queue,
                size,
                descriptors,
                available,
                used,
            }),
        1 => prop_oneof![3 => Just(0), 1 => any::<u64>()]
            .prop_map(|other| Step::Negotiate { other }),
        1 => Just(Step::DriverOk),
        2 => (0..8_u8, 0..8_u8)
            .prop_map(|(without, exponent)| Step::Start { without, exponent }),
        1 => Just(Step::Reset),
        1 => Just(Step::Pause),
        2 => Just(Step::Resume),
        1 => Just(Step::Leave),
        2 => Just(Step::Return),
        3 => Just(Step::Rest),
    ]
}

/// Requests that the device is told of, and what happens before they can be done: some are of memory that
/// goes, and the host has something for them just then.
fn in_the_midst() -> impl Strategy<Value = Vec<Step>> {
    let event = select(vec![
        (Step::Pause, Step::Resume),
        (Step::Reset, Step::Rest),
        (Step::Leave, Step::Return),
    ]);
    let requests = vec((sound_chain(), any::<bool>()), 1..4);
    let host = vec(any::<u8>().prop_map(|what| Step::Host { what }), 0..3);
    (queue(), requests, event, host).prop_map(|(told, requests, (begin, end), host)| {
        let mut steps = Vec::new();
        for (mut step, goes) in requests {
            if let Step::Chain { queue, parts, .. } = &mut step {
                *queue = told;
                for (part, at) in parts.iter_mut().zip(0..8_i16).filter(|_| goes) {
                    let delta = at * 0x400;
                    part.at = Place::Seam { delta };
                }
            }
            steps.push(step);
        }
        steps.extend([Step::Kick { queue: told }, begin]);
        steps.extend(host);
        steps.extend([Step::Rest, end]);
        steps
    })
}

/// A driver that sets queues up itself, wherever that is.
fn odd_beginning() -> impl Strategy<Value = Vec<Step>> {
    let rings = (
        queue(),
        select(vec![1, 2, 4, 16, 64, 256_u16]),
        any_ring(),
        any_ring(),
        any_ring(),
    );
    vec(rings, 1..3).prop_map(|queues| {
        let mut steps = vec![Step::Negotiate { other: 0 }];
        for (queue, size, descriptors, available, used) in queues {
            steps.push(Step::SetUp {
                queue,
                size,
                descriptors,
                available,
                used,
            });
        }
        steps.push(Step::DriverOk);
        steps
    })
}

/// Any driver.
pub fn any_program() -> impl Strategy<Value = Program> {
    let start = (0..4_u8, 0..8_u8);
    let start = start.prop_map(|(without, exponent)| vec![Step::Start { without, exponent }]);
    let beginning = prop_oneof![8 => start, 2 => odd_beginning(), 1 => Just(Vec::new())];
    let one = |step| vec![step];
    let steps = prop_oneof![
        30 => queue_steps().prop_map(one),
        5 => device_steps().prop_map(one),
        2 => in_the_midst(),
    ];
    (beginning, vec(steps, 0..40)).prop_map(|(mut program, steps)| {
        program.extend(steps.into_iter().flatten());
        Program(program)
    })
}
