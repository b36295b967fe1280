//! Limits on a clock of the tests' own.

mod property;

use vmm_sys_util::poll::PollContext;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

fn bucket(size: u64, one_time_burst: u64, refill: Duration) -> Option<Bucket> {
    Some(Bucket {
        size,
        one_time_burst,
        refill,
    })
}

/// Limiters of the same limits, and the time.
struct Scene {
    now: Instant,
    limiters: Vec<RateLimiter>,
}

impl Scene {
    fn new(count: usize, bandwidth: Option<Bucket>, ops: Option<Bucket>) -> Self {
        let now = Instant::now();
        let limits = Arc::new(Limits::since(now, bandwidth, ops));
        let limiter = |_| RateLimiter::new(Arc::clone(&limits)).unwrap();
        Self {
            now,
            limiters: (0..count).map(limiter).collect(),
        }
    }

    fn take(&mut self, member: usize, bytes: u64) -> bool {
        self.limiters[member].take_at(bytes, self.now)
    }

    fn clear(&mut self, member: usize) {
        self.limiters[member].clear_at(|| self.now);
    }

    /// In how long the time of what waits comes; nothing if it has come.
    fn due(&self, member: usize) -> Option<Duration> {
        let limiter = &self.limiters[member];
        let state = limiter.limits.lock();
        let waiting = state.waiting.get(state.position(&limiter.timer)?)?;
        let at = limiter.limits.origin + Duration::from_nanos(waiting.due);
        at.checked_duration_since(self.now)
            .filter(|due| !due.is_zero())
    }

    /// Asks for something that has to wait, comes a nanosecond early and then when it is due.
    fn wait(&mut self, member: usize, bytes: u64) -> Duration {
        assert!(!self.take(member, bytes));
        let due = self.due(member).unwrap();
        self.now += due - Duration::from_nanos(1);
        assert!(!self.take(member, bytes), "it comes early");
        self.now += Duration::from_nanos(1);
        assert!(self.take(member, bytes), "it comes late");
        due
    }

    fn is_readable(&self, member: usize, patience: Duration) -> bool {
        let timer = self.limiters[member].timer.lock();
        let context = PollContext::<u32>::new().unwrap();
        context.add(&*timer, 0).unwrap();
        let events = context.wait_timeout(patience).unwrap();
        events.iter_readable().count() == 1
    }
}

#[test]
fn a_bucket_is_full_at_first_and_fills_evenly() {
    let mut scene = Scene::new(1, bucket(100, 0, SECOND), None);
    assert!(scene.take(0, 60));
    assert!(scene.take(0, 40));
    assert_eq!(scene.wait(0, 1), 10 * MILLISECOND);
    assert_eq!(scene.wait(0, 50), 500 * MILLISECOND);
    scene.now += 300 * MILLISECOND;
    assert_eq!(scene.wait(0, 50), 200 * MILLISECOND);
    // It holds no more than its size, however long nothing is asked for.
    scene.now += 100 * SECOND;
    assert!(scene.take(0, 100));
    assert_eq!(scene.wait(0, 100), SECOND);
}

#[test]
fn the_burst_is_used_first_and_does_not_come_back() {
    let mut scene = Scene::new(1, None, bucket(10, 5, SECOND));
    for _ in 0..5 {
        assert!(scene.take(0, 4096));
        scene.now += SECOND;
    }
    for _ in 0..10 {
        assert!(scene.take(0, 4096));
    }
    assert_eq!(scene.wait(0, 4096), 100 * MILLISECOND);
    scene.now += 100 * SECOND;
    for _ in 0..10 {
        assert!(scene.take(0, 4096));
    }
    assert_eq!(scene.wait(0, 4096), 100 * MILLISECOND);
}

#[test]
fn more_than_a_bucket_holds_waits_until_it_is_full_and_leaves_a_debt() {
    let mut scene = Scene::new(1, bucket(100, 0, SECOND), None);
    assert!(scene.take(0, 10));
    assert_eq!(scene.wait(0, 1000), 100 * MILLISECOND);
    assert_eq!(scene.wait(0, 1), 9 * SECOND + 10 * MILLISECOND);
}

#[test]
fn what_moves_nothing_does_not_wait_for_bytes() {
    let limits = (bucket(1, 0, SECOND), bucket(2, 0, SECOND));
    let mut scene = Scene::new(1, limits.0, limits.1);
    assert!(scene.take(0, 1000));
    assert!(scene.take(0, 0));
    assert_eq!(scene.wait(0, 0), 500 * MILLISECOND);
}

#[test]
fn both_buckets_have_to_have_enough() {
    let mut scene = Scene::new(1, bucket(100, 0, SECOND), bucket(2, 0, SECOND));
    assert!(scene.take(0, 10));
    assert!(scene.take(0, 10));
    assert_eq!(scene.wait(0, 10), 500 * MILLISECOND);
    assert_eq!(scene.wait(0, 100), 500 * MILLISECOND);
    assert_eq!(scene.wait(0, 100), SECOND);
    scene.now += SECOND;
    assert!(scene.take(0, 100));
}

/// Three tokens in a second do not divide it evenly.
#[test]
fn no_part_of_a_token_is_lost() {
    let mut scene = Scene::new(1, bucket(3, 0, SECOND), None);
    let start = scene.now;
    assert!(scene.take(0, 3));
    for _ in 0..30_000 {
        assert!(!scene.take(0, 1));
        scene.now += scene.due(0).unwrap();
        assert!(scene.take(0, 1));
    }
    assert_eq!(scene.now - start, 10_000 * SECOND);
}

#[test]
fn no_limit_is_none() {
    let no_time = bucket(1, 0, Duration::ZERO);
    let nothing = bucket(0, 1, SECOND);
    for (bandwidth, ops) in [(None, None), (no_time, nothing), (nothing, no_time)] {
        let mut scene = Scene::new(1, bandwidth, ops);
        assert!(scene.limiters[0].limits.is_unlimited());
        for _ in 0..10 {
            assert!(scene.take(0, u64::MAX));
        }
    }
    let one = bucket(1, 0, SECOND);
    assert!(!Limits::new(one, None).is_unlimited());
    assert!(!Limits::new(None, one).is_unlimited());
}

/// Whoever always wants more gets as much as the others, and no more.
#[test]
fn members_take_turns() {
    let mut scene = Scene::new(4, None, bucket(10, 0, SECOND));
    let mut counts = [0; 4];
    for _ in 0..10_000 {
        for (member, count) in counts.iter_mut().enumerate() {
            // As a thread does that is woken: all that it may.
            while scene.take(member, 1) {
                *count += 1;
            }
        }
        scene.now += 25 * MILLISECOND;
    }
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    // The first has found the bucket full.
    assert!(most - least <= 11, "{counts:?}");
    assert_eq!(counts.iter().sum::<u64>(), 10 + 2499);
}

/// Beside one that moves much, one that moves little waits for one operation of it.
#[test]
fn little_is_not_kept_waiting_by_much() {
    let mut scene = Scene::new(2, bucket(100, 0, SECOND), None);
    assert!(scene.take(0, 100));
    for _ in 0..10 {
        assert!(!scene.take(0, 100));
        assert!(!scene.take(1, 1));
        assert!(scene.due(1).unwrap() <= SECOND + 10 * MILLISECOND);
        scene.now += scene.due(0).unwrap();
        assert!(scene.take(0, 100));
        assert!(!scene.take(0, 100), "the other's turn");
        scene.now += scene.due(1).unwrap();
        assert!(scene.take(1, 1));
        scene.clear(0);
        scene.now += SECOND;
        assert!(scene.take(0, 100));
    }
}

/// A thread that does not come for what it is given holds up nobody.
#[test]
fn one_that_does_not_come_holds_nobody_up() {
    let mut scene = Scene::new(2, None, bucket(1, 0, SECOND));
    assert!(scene.take(0, 0));
    assert!(!scene.take(0, 0));
    for _ in 0..100 {
        assert!(!scene.take(1, 0));
        assert!(scene.due(1).unwrap() <= 2 * SECOND);
        scene.now += scene.due(1).unwrap();
        assert!(scene.take(1, 0));
    }
    // And it has what it has waited for.
    assert!(scene.take(0, 0));
    assert_eq!(scene.wait(0, 0), SECOND);
}

#[test]
fn those_behind_one_that_gives_up_move_forward() {
    let mut scene = Scene::new(4, bucket(10, 0, SECOND), None);
    assert!(scene.take(0, 10));
    assert!(!scene.take(0, 5));
    assert!(!scene.take(1, 1000));
    assert!(!scene.take(2, 1));
    assert!(!scene.take(3, 1));
    let due =
        |scene: &Scene| [0, 1, 2, 3].map(|member| scene.due(member).map(|due| due.as_millis()));
    assert_eq!(
        due(&scene),
        [Some(500), Some(1500), Some(100_600), Some(100_700)]
    );
    scene.now += 100 * MILLISECOND;
    scene.clear(1);
    assert_eq!(due(&scene), [Some(400), None, Some(500), Some(600)]);
    // To give up twice, or when nothing waits, changes nothing.
    scene.clear(1);
    assert_eq!(due(&scene), [Some(400), None, Some(500), Some(600)]);
    let last = scene.limiters.pop().unwrap();
    drop(last);
    scene.now += 500 * MILLISECOND;
    assert!(scene.take(0, 5) && scene.take(2, 1));
    assert_eq!(scene.wait(1, 1), 100 * MILLISECOND);
}

/// Its tokens are taken once, whoever comes first then.
#[test]
fn what_moves_forward_may_be_due_at_once() {
    let mut scene = Scene::new(2, bucket(10, 0, SECOND), None);
    assert!(scene.take(0, 6));
    assert!(!scene.take(0, 10));
    assert!(!scene.take(1, 1));
    assert!(scene.take(0, 0));
    assert_eq!(scene.due(1), None);
    assert!(scene.take(1, 1));
    assert!(!scene.take(1, 10));
    assert!(scene.take(1, 3));
    assert_eq!(scene.wait(1, 1), 100 * MILLISECOND);
}

#[test]
fn who_asks_for_something_else_loses_the_place() {
    let mut scene = Scene::new(2, bucket(10, 0, SECOND), None);
    assert!(scene.take(0, 10));
    assert!(!scene.take(0, 1));
    assert!(!scene.take(1, 1));
    assert!(!scene.take(0, 5));
    assert_eq!(scene.due(0), Some(600 * MILLISECOND));
    assert_eq!(scene.due(1), Some(100 * MILLISECOND));
    // Not cheaper either if it changes its mind when the time has come.
    scene.now += 600 * MILLISECOND;
    assert!(scene.take(1, 1));
    assert!(!scene.take(0, 10));
    assert_eq!(scene.due(0), Some(SECOND));
}

#[test]
fn numbers_of_any_size_are_taken() {
    let largest = bucket(u64::MAX, u64::MAX, Duration::from_millis(u64::MAX));
    let mut scene = Scene::new(2, largest, largest);
    for _ in 0..4 {
        // The burst, the bucket, and a bucket of debt.
        scene.take(0, u64::MAX);
    }
    assert!(!scene.take(0, u64::MAX) && !scene.take(1, 1));
    scene.now += Duration::from_secs(u32::MAX.into());
    assert!(!scene.take(0, u64::MAX) && !scene.take(1, 1));

    // One token in a millisecond, in spite of the longest period, whose ticks are 17 ms.
    let mut scene = Scene::new(
        1,
        bucket(u64::MAX, 0, Duration::from_millis(u64::MAX)),
        None,
    );
    assert!(scene.take(0, u64::MAX));
    assert!(!scene.take(0, 100_000));
    let due = scene.due(0).unwrap();
    let expected = 100 * SECOND;
    assert!(
        due.abs_diff(expected) < Duration::from_millis(20),
        "{due:?}"
    );

    // The shortest: nothing ever waits for long.
    let mut scene = Scene::new(1, bucket(1, 0, Duration::from_nanos(1)), None);
    assert!(scene.take(0, 1000));
    assert_eq!(scene.wait(0, 1), Duration::from_nanos(1000));
}

#[test]
fn the_event_says_when() {
    let mut scene = Scene::new(2, None, bucket(1, 0, 200 * MILLISECOND));
    let start = Instant::now();
    assert!(scene.limiters[0].take(0));
    assert!(!scene.is_readable(0, Duration::ZERO));
    assert!(!scene.limiters[0].take(0));
    assert!(!scene.limiters[1].take(0));
    assert!(scene.is_readable(0, 20 * SECOND));
    assert!(scene.limiters[0].take(0));
    assert!(!scene.is_readable(0, Duration::ZERO));
    assert!(scene.is_readable(1, 20 * SECOND));
    assert!(start.elapsed() >= 399 * MILLISECOND);
    // It stays readable until somebody asks, or does not want to know.
    assert!(scene.is_readable(1, Duration::ZERO));
    scene.limiters[1].clear();
    assert!(!scene.is_readable(1, Duration::ZERO));
}

/// In that of a limiter that did not ask for it.
#[test]
fn events_move_forward_too() {
    let mut scene = Scene::new(2, bucket(1, 0, 200 * MILLISECOND), None);
    assert!(scene.limiters[0].take(1));
    assert!(!scene.limiters[0].take(1_000_000_000));
    assert!(!scene.limiters[1].take(1));
    scene.limiters[0].clear();
    assert!(scene.is_readable(1, 20 * SECOND));
    assert!(scene.limiters[1].take(1));
}

/// Threads that take all they can get, together no more than there is.
#[test]
fn threads_share_a_limit() {
    let limits = Arc::new(Limits::new(None, bucket(50, 0, 100 * MILLISECOND)));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let mut limiter = RateLimiter::new(Arc::clone(&limits)).unwrap();
            scope.spawn(move || {
                for _ in 0..25 {
                    while !limiter.take(1) {
                        let timer = Arc::clone(&limiter.timer);
                        timer.lock().wait().unwrap();
                    }
                }
            });
        }
    });
    // The bucket, and as much again.
    assert!(start.elapsed() >= 100 * MILLISECOND);
}
