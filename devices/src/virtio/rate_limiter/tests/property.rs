//! Limits against a model that goes through every nanosecond.

use proptest::prelude::*;

use super::*;

const MEMBERS: usize = 3;

/// Something that happens: how long after the last, to whom, and what it asks for; nothing if it gives
/// up.
type Act = (u64, usize, Option<u64>);

fn any_bucket() -> impl Strategy<Value = Option<Bucket>> {
    let bucket = (1..20_u64, 0..20_u64, 1..40_u64);
    prop::option::of(bucket.prop_map(|(size, one_time_burst, refill)| Bucket {
        size,
        one_time_burst,
        refill: Duration::from_nanos(refill),
    }))
}

fn any_act() -> impl Strategy<Value = Act> {
    let bytes = prop_oneof![8 => (0..50_u64).prop_map(Some), 1 => Just(None)];
    (0..20_u64, 0..MEMBERS, bytes)
}

/// A bucket, in parts of which a token has as many as it fills in nanoseconds.
#[derive(Clone, Copy)]
struct Model {
    bucket: Bucket,
    parts: i64,
}

impl Model {
    fn new(bucket: Bucket) -> Self {
        let parts = (bucket.size + bucket.one_time_burst) as i64 * Self::token(bucket);
        Self { bucket, parts }
    }

    fn token(bucket: Bucket) -> i64 {
        bucket.refill.as_nanos() as i64
    }

    fn tick(&mut self) {
        let size = self.bucket.size as i64;
        let full = size * Self::token(self.bucket);
        if self.parts < full {
            self.parts = full.min(self.parts + size);
        }
    }

    fn has(&self, tokens: u64) -> bool {
        let wanted = tokens.min(self.bucket.size) as i64 * Self::token(self.bucket);
        tokens == 0 || self.parts >= wanted
    }

    fn take(&mut self, tokens: u64) {
        self.parts -= tokens as i64 * Self::token(self.bucket);
    }
}

/// What waits, in its order, and what its time has come for.
struct World {
    bandwidth: Option<Model>,
    ops: Option<Model>,
    waiting: Vec<(usize, u64)>,
    granted: [Option<u64>; MEMBERS],
}

impl World {
    fn settle(&mut self) {
        while let Some((member, bytes)) = self.waiting.first().copied() {
            let has = |model: &Option<Model>, tokens| model.is_none_or(|model| model.has(tokens));
            if !has(&self.bandwidth, bytes) || !has(&self.ops, 1) {
                return;
            }
            for (model, tokens) in [(&mut self.bandwidth, bytes), (&mut self.ops, 1)] {
                if let Some(model) = model {
                    model.take(tokens);
                }
            }
            self.granted[member] = Some(bytes);
            self.waiting.remove(0);
        }
    }

    fn tick(&mut self) {
        for model in [&mut self.bandwidth, &mut self.ops].into_iter().flatten() {
            model.tick();
        }
        self.settle();
    }

    fn give_up(&mut self, member: usize) {
        self.granted[member] = None;
        self.waiting.retain(|(other, _)| *other != member);
        self.settle();
    }

    fn take(&mut self, member: usize, bytes: u64) -> bool {
        let waits = self.waiting.contains(&(member, bytes));
        if !waits && self.granted[member] != Some(bytes) {
            self.give_up(member);
            self.waiting.push((member, bytes));
            self.settle();
        }
        if self.granted[member] == Some(bytes) {
            self.granted[member] = None;
            return true;
        }
        false
    }
}

/// No more is granted in any time than a full bucket, the burst, what comes in meanwhile, and `more`.
fn is_within(bucket: Option<Bucket>, granted: &[(u64, u64)], more: u64) -> bool {
    let Some(bucket) = bucket else { return true };
    let Bucket {
        size,
        one_time_burst,
        refill,
    } = bucket;
    let refill = refill.as_nanos() as u64;
    (0..granted.len()).all(|first| {
        let mut sum = 0;
        granted[first..].iter().all(|(at, tokens)| {
            sum += tokens;
            let time = at - granted[first].0;
            sum * refill <= (size + one_time_burst + more) * refill + size * time
        })
    })
}

proptest! {
    /// What is granted, and when, is what the model says to the nanosecond, for any operations of any
    /// number of members, and whoever gives up.
    #[test]
    fn limits_are_what_they_say(
        bandwidth in any_bucket(),
        ops in any_bucket(),
        acts in prop::collection::vec(any_act(), 1..80),
        // Members come as soon as their time has come, or when they like.
        prompt in any::<bool>(),
    ) {
        let mut scene = Scene::new(MEMBERS, bandwidth, ops);
        let mut world = World {
            bandwidth: bandwidth.map(Model::new),
            ops: ops.map(Model::new),
            waiting: Vec::new(),
            granted: [None; MEMBERS],
        };
        let start = scene.now;
        let mut granted: Vec<(u64, u64)> = Vec::new();
        let mut largest = 0;
        for (delay, member, bytes) in acts {
            for _ in 0..delay {
                scene.now += Duration::from_nanos(1);
                world.tick();
                for member in (0..MEMBERS).filter(|_| prompt) {
                    let Some(bytes) = scene.limiters[member].reserved else { continue };
                    let taken = scene.take(member, bytes);
                    prop_assert_eq!(taken, world.take(member, bytes));
                    if taken {
                        granted.push(((scene.now - start).as_nanos() as u64, bytes));
                    }
                }
            }
            match bytes {
                None => {
                    scene.clear(member);
                    world.give_up(member);
                }
                Some(bytes) => {
                    largest = largest.max(bytes);
                    let taken = scene.take(member, bytes);
                    prop_assert_eq!(taken, world.take(member, bytes));
                    if taken {
                        granted.push(((scene.now - start).as_nanos() as u64, bytes));
                    }
                }
            }
            let waits = (0..MEMBERS).filter(|member| scene.due(*member).is_some());
            let mut expected: Vec<usize> = world.waiting.iter().map(|(member, _)| *member).collect();
            expected.sort_unstable();
            prop_assert_eq!(waits.collect::<Vec<_>>(), expected);
        }
        // One operation of each that comes late; on time, one that is larger than the bucket.
        let late = if prompt { 1 } else { MEMBERS as u64 + 1 };
        prop_assert!(is_within(bandwidth, &granted, largest * late), "{:?}", granted);
        let count: Vec<_> = granted.iter().map(|(at, _)| (*at, 1)).collect();
        prop_assert!(is_within(ops, &count, late), "{:?}", count);
    }

    /// Nothing overflows, and everything that waits is due some time.
    #[test]
    fn any_numbers_can_be_asked_for(
        buckets in any::<[Option<(u64, u64, u64)>; 2]>(),
        acts in prop::collection::vec((any::<u64>(), 0..MEMBERS, any::<Option<u64>>()), 1..50),
    ) {
        let [bandwidth, ops] = buckets.map(|bucket| {
            bucket.map(|(size, one_time_burst, refill)| Bucket {
                size,
                one_time_burst,
                refill: Duration::from_millis(refill),
            })
        });
        let mut scene = Scene::new(MEMBERS, bandwidth, ops);
        for (delay, member, bytes) in acts {
            scene.now += Duration::from_nanos(delay >> 8);
            match bytes {
                None => scene.clear(member),
                Some(bytes) => {
                    let taken = scene.take(member, bytes);
                    prop_assert_eq!(taken, scene.due(member).is_none());
                }
            }
        }
    }
}
