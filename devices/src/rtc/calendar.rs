//! Days and dates of the proleptic Gregorian calendar.

/// Days from 0000-03-01 to 1970-01-01.
const EPOCH: i64 = 719_468;
/// Days in 400 years, after which the calendar repeats.
const ERA: i64 = 146_097;

/// A date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: i64,
    /// 1 to 31.
    pub(super) day: i64,
}

/// Days from 1970-01-01 to the first of `date`'s month, and `date.day - 1` days more: a day that
/// its month does not have is a day of the next month.
pub(super) fn days_since_epoch(date: Date) -> i64 {
    // Years that begin in March have their leap day at the end.
    let month = (date.month + 9) % 12;
    let year = date.year - i64::from(date.month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let leap_days = year_of_era / 4 - year_of_era / 100;
    era * ERA + year_of_era * 365 + leap_days + days_before_month(month) + date.day - 1 - EPOCH
}

/// The date that is `days` days after 1970-01-01.
pub(super) fn date(days: i64) -> Date {
    let days = days + EPOCH;
    let (era, day_of_era) = (days.div_euclid(ERA), days.rem_euclid(ERA));
    // Taking out the leap days that have passed makes every year 365 days long: one at the end
    // of each 4 years, none after 100, one after 400.
    let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let january = month >= 10;
    Date {
        year: era * 400 + year_of_era + i64::from(january),
        month: if january { month - 9 } else { month + 3 },
        day: day_of_year - days_before_month(month) + 1,
    }
}

/// The day of the week that is `days` days after 1970-01-01, a Thursday: 0 is Sunday.
pub(super) fn weekday(days: i64) -> i64 {
    (days + 4).rem_euclid(7)
}

/// Days from the first of March to the first of a month, March being 0: five months have 153.
fn days_before_month(month: i64) -> i64 {
    (153 * month + 2) / 5
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against `date -u -d YYYY-MM-DD +%s` divided by 86400, and `+%w`.
    #[test]
    fn known_days() {
        for (year, month, day, days, of_week) in [
            (1970, 1, 1, 0, 4),
            (1969, 12, 31, -1, 3),
            (1900, 3, 1, -25_508, 4),
            (2000, 2, 29, 11_016, 2),
            (2000, 3, 1, 11_017, 3),
            (2024, 2, 29, 19_782, 4),
            (2026, 11, 22, 20_779, 0),
            (2100, 3, 1, 47_541, 1),
            (9999, 12, 31, 2_932_896, 5),
        ] {
            let expected = Date { year, month, day };
            assert_eq!(days_since_epoch(expected), days, "{expected:?}");
            assert_eq!(date(days), expected);
            assert_eq!(weekday(days), of_week, "{expected:?}");
        }
    }

    /// Walks through every day of the years that four CMOS digits can show.
    #[test]
    fn every_day_follows_the_day_before() {
        let mut expected = Date {
            year: 0,
            month: 1,
            day: 1,
        };
        let first = days_since_epoch(expected);
        let last = 2_932_896;
        for days in first..=last {
            assert_eq!(date(days), expected);
            assert_eq!(days_since_epoch(expected), days);
            let leap =
                expected.year % 4 == 0 && (expected.year % 100 != 0 || expected.year % 400 == 0);
            let length = match expected.month {
                2 => 28 + i64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            expected.day += 1;
            if expected.day > length {
                (expected.day, expected.month) = (1, expected.month + 1);
            }
            if expected.month > 12 {
                (expected.month, expected.year) = (1, expected.year + 1);
            }
        }
        assert_eq!(expected.year, 10_000);
    }

    #[test]
    fn a_day_too_many_is_in_the_next_month() {
        let february = |year| Date {
            year,
            month: 2,
            day: 30,
        };
        let march = |year, day| Date {
            year,
            month: 3,
            day,
        };
        assert_eq!(date(days_since_epoch(february(2023))), march(2023, 2));
        assert_eq!(date(days_since_epoch(february(2024))), march(2024, 1));
    }
}
