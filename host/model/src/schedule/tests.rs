use proptest::prelude::*;

use super::*;

fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

fn ticks(cron: &str, zone: &str) -> Ticks {
    Ticks::parse(cron, zone).unwrap_or_else(|error| panic!("{cron}: {error}"))
}

/// The ticks after `from`, as the zone's clocks show them.
fn next(cron: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
    let ticks = ticks(cron, zone);
    let following = std::iter::successors(ticks.next_after(at(from)), |tick| ticks.next_after(*tick));
    following.take(count).map(|tick| ticks.local_text(tick)).collect()
}

fn schedule(cron: &str, misfire: Misfire, misfire_max: u32) -> Schedule {
    Schedule { ticks: ticks(cron, "UTC"), misfire, misfire_max, spread_s: 0 }
}

#[test]
fn expressions_name_their_ticks() {
    for (cron, zone, expected) in [
        ("0 2 * * *", "Europe/Berlin", ["2026-11-22T02:00:00+01:00", "2026-11-23T02:00:00+01:00"]),
        ("*/15 * * * *", "UTC", ["2026-11-21T08:15:00+00:00", "2026-11-21T08:30:00+00:00"]),
        ("30 */15 * * * *", "UTC", ["2026-11-21T08:00:30+00:00", "2026-11-21T08:15:30+00:00"]),
        ("0 9 * * MON-FRI", "America/New_York", ["2026-11-23T09:00:00-05:00", "2026-11-24T09:00:00-05:00"]),
        ("0 9 * * 7", "UTC", ["2026-11-22T09:00:00+00:00", "2026-11-29T09:00:00+00:00"]),
        ("0 0 L * *", "UTC", ["2026-11-30T00:00:00+00:00", "2026-12-31T00:00:00+00:00"]),
        ("0 0 * * FRI#2", "UTC", ["2026-12-11T00:00:00+00:00", "2027-01-08T00:00:00+00:00"]),
        // Of day and weekday one is enough, as in every cron; `+` asks for both.
        ("0 0 13 * FRI", "UTC", ["2026-11-27T00:00:00+00:00", "2026-12-04T00:00:00+00:00"]),
        ("0 0 13 * +FRI", "UTC", ["2027-08-13T00:00:00+00:00", "2028-10-13T00:00:00+00:00"]),
        ("0 0 29 2 *", "UTC", ["2028-02-29T00:00:00+00:00", "2032-02-29T00:00:00+00:00"]),
        ("@daily", "Asia/Kathmandu", ["2026-11-22T00:00:00+05:45", "2026-11-23T00:00:00+05:45"]),
    ] {
        assert_eq!(next(cron, zone, "2026-11-21T08:00:00Z", 2), expected, "{cron}");
    }
}

#[test]
fn a_tick_comes_strictly_after() {
    assert_eq!(next("0 8 * * *", "UTC", "2026-11-21T07:59:59.999999Z", 1), ["2026-11-21T08:00:00+00:00"]);
    assert_eq!(next("0 8 * * *", "UTC", "2026-11-21T08:00:00Z", 1), ["2026-11-22T08:00:00+00:00"]);
    // The rarest there is: 2100 is no leap year, so 40 years lie between two of them.
    assert_eq!(next("0 0 29 2 +MON", "UTC", "2072-03-01T00:00:00Z", 1), ["2112-02-29T00:00:00+00:00"]);
}

#[test]
fn a_fixed_time_that_the_clock_leaves_out_fires_once_right_after() {
    // Berlin, 29 March 2026: 02:00 becomes 03:00.
    let before = "2026-03-28T12:00:00Z";
    for cron in ["30 2 * * *", "0,15,30 2 * * *", "30 2,3 * * SUN", "0 2,3 * * *"] {
        let shown = next(cron, "Europe/Berlin", before, 3);
        assert_eq!(shown[0], "2026-03-29T03:00:00+02:00", "{cron}");
        assert_ne!(shown[1], shown[0], "{cron}");
    }
    let shown = next("30 2 * * *", "Europe/Berlin", before, 2);
    assert_eq!(shown[1], "2026-03-30T02:30:00+02:00");
    // Other gaps: half an hour, and one at midnight.
    assert_eq!(next("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T10:00:00Z", 1), ["2026-10-04T02:30:00+11:00"]);
    assert_eq!(next("0 0 * * *", "America/Santiago", "2026-09-05T12:00:00Z", 1), ["2026-09-06T01:00:00-03:00"]);
}

#[test]
fn a_fixed_time_that_the_clock_repeats_fires_at_the_first() {
    // Berlin, 25 October 2026: 03:00 becomes 02:00.
    let shown = next("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2);
    assert_eq!(shown, ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]);
    // Asked between the two, and at the second.
    for from in ["2026-10-25T00:45:00Z", "2026-10-25T01:15:00Z", "2026-10-25T01:30:00Z"] {
        assert_eq!(next("30 2 * * *", "Europe/Berlin", from, 1), ["2026-10-26T02:30:00+01:00"], "{from}");
    }
}

#[test]
fn an_interval_skips_what_is_left_out_and_repeats_what_is_repeated() {
    assert_eq!(
        next("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:30:00Z", 2),
        ["2026-03-29T03:00:00+02:00", "2026-03-29T03:30:00+02:00"]
    );
    assert_eq!(
        next("*/30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 2),
        ["2026-03-30T02:00:00+02:00", "2026-03-30T02:30:00+02:00"]
    );
    assert_eq!(
        next("*/30 * * * *", "Europe/Berlin", "2026-10-24T23:30:00Z", 6),
        [
            "2026-10-25T02:00:00+02:00",
            "2026-10-25T02:30:00+02:00",
            "2026-10-25T02:00:00+01:00",
            "2026-10-25T02:30:00+01:00",
            "2026-10-25T03:00:00+01:00",
            "2026-10-25T03:30:00+01:00",
        ]
    );
}

#[test]
fn what_cannot_be_is_refused_with_what_to_do() {
    let refused = |cron: &str| Ticks::parse(cron, "UTC").expect_err(cron);
    for cron in [
        "",
        "x",
        "* * * *",
        "61 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "*/0 * * * *",
        "5-1 * * * *",
        "0 0 * * MON#6",
        "@sometimes",
        "0 0 0 1 1 * 2030",
        "1 2 3 4 5 6 7 8",
    ] {
        let error = refused(cron);
        assert!(matches!(error, ScheduleError::Cron(_)), "{cron}: {error:?}");
        assert!(error.to_string().contains("MON-FRI"), "{cron}: {error}");
    }
    for cron in ["* * * * * *", "*/30 * * * * *", "0,30 * * * * *"] {
        assert_eq!(refused(cron), ScheduleError::TooFrequent, "{cron}");
    }
    for cron in ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 8 * +MON#1", ", * * * *"] {
        assert_eq!(refused(cron), ScheduleError::NeverFires, "{cron}");
    }
    assert_eq!(
        Ticks::parse("*/10 2 29 3 *", "Europe/Berlin").map(|ticks| ticks.fixed),
        Ok(false),
        "left out in some years, not in all"
    );
    assert!(matches!(refused(&"1,".repeat(200)), ScheduleError::Cron(_)));
    for zone in ["", "Berlin", "Europe/Nowhere", "CET+1", "europe/berlin"] {
        assert_eq!(Ticks::parse("* * * * *", zone).unwrap_err(), ScheduleError::Zone(zone.to_owned()));
    }
}

#[test]
fn missed_ticks_follow_the_policy() {
    let first = at("2026-11-21T01:00:00Z");
    let settle = |misfire, max, now: &str| schedule("0 * * * *", misfire, max).settle(first, Duration::ZERO, at(now));
    let hours = |settled: &Settlement| -> Vec<(String, bool)> {
        settled.fire.iter().map(|firing| (firing.tick.to_string()[11..13].to_owned(), firing.late)).collect()
    };
    let tick = |hour: &str, late| (hour.to_owned(), late);
    // Not due yet; due; due and a little late: the policy is not asked.
    for misfire in [Misfire::Skip, Misfire::Once, Misfire::All] {
        let early = settle(misfire, 100, "2026-11-21T00:59:59.999999Z");
        assert_eq!(early, Settlement { fire: vec![], missed: 0, last: None, next: Some(first) });
        for now in ["2026-11-21T01:00:00Z", "2026-11-21T01:00:59.999999Z"] {
            let due = settle(misfire, 100, now);
            assert_eq!(hours(&due), [tick("01", false)]);
            assert_eq!((due.missed, due.next), (0, Some(at("2026-11-21T02:00:00Z"))));
        }
    }
    // Five missed, the newest of them 20 minutes ago.
    let now = "2026-11-21T05:20:00Z";
    let (skip, once, all) =
        (settle(Misfire::Skip, 3, now), settle(Misfire::Once, 3, now), settle(Misfire::All, 3, now));
    assert_eq!((hours(&skip), skip.missed), (vec![], 5));
    assert_eq!((hours(&once), once.missed), (vec![tick("05", true)], 4));
    assert_eq!((hours(&all), all.missed), (vec![tick("03", true), tick("04", true), tick("05", true)], 2));
    let all = settle(Misfire::All, 100, now);
    assert_eq!((all.fire.len(), all.missed), (5, 0));
    for settled in [skip, once, all] {
        assert_eq!(settled.last, Some(at("2026-11-21T05:00:00Z")));
        assert_eq!(settled.next, Some(at("2026-11-21T06:00:00Z")));
    }
    // Four missed, and one that is in time: every policy fires that one.
    let now = "2026-11-21T05:00:10Z";
    let (skip, once, all) =
        (settle(Misfire::Skip, 3, now), settle(Misfire::Once, 3, now), settle(Misfire::All, 3, now));
    assert_eq!((hours(&skip), skip.missed), (vec![tick("05", false)], 4));
    assert_eq!((hours(&once), once.missed), (vec![tick("05", false)], 4));
    assert_eq!((hours(&all), all.missed), (vec![tick("03", true), tick("04", true), tick("05", false)], 2));
}

#[test]
fn the_offset_delays_the_firing_and_not_the_tick() {
    let schedule = schedule("0 * * * *", Misfire::Skip, 1);
    let (first, offset) = (at("2026-11-21T01:00:00Z"), Duration::from_mins(30));
    let early = schedule.settle(first, offset, at("2026-11-21T01:29:59Z"));
    assert_eq!((early.fire.len(), early.next), (0, Some(first)));
    let due = schedule.settle(first, offset, at("2026-11-21T01:30:20Z"));
    assert_eq!(due.fire, [Firing { tick: first, late: false }]);
    assert_eq!(due.next, Some(at("2026-11-21T02:00:00Z")));
}

#[test]
fn a_year_of_minutes_is_settled_in_bounded_rounds() {
    let schedule = schedule("* * * * *", Misfire::All, 5);
    let (mut first, now) = (at("2026-01-01T00:00:00Z"), at("2026-02-15T00:00:30Z"));
    let (mut missed, mut rounds) = (0, 0);
    let fired = loop {
        let settled = schedule.settle(first, Duration::ZERO, now);
        rounds += 1;
        missed += settled.missed;
        first = settled.next.unwrap();
        if first > now {
            break settled.fire;
        }
        assert_eq!(settled.fire, [], "an unfinished round fires nothing");
    };
    let minutes = 45 * 24 * 60 + 1;
    assert_eq!((missed, rounds), (minutes - 5, 4));
    assert_eq!(fired.iter().map(|firing| firing.late).collect::<Vec<_>>(), [true, true, true, true, false]);
    assert_eq!((fired[4].tick, first), (at("2026-02-15T00:00:00Z"), at("2026-02-15T00:01:00Z")));
}

fn any_field(min: u32, max: u32) -> impl Strategy<Value = String> {
    let number = move || min..=max;
    prop_oneof![
        4 => Just("*".to_owned()),
        2 => number().prop_map(|number| number.to_string()),
        1 => (2..=(max - min).min(30)).prop_map(|step| format!("*/{step}")),
        1 => (number(), number()).prop_map(|(one, other)| format!("{}-{}", one.min(other), one.max(other))),
        1 => proptest::collection::vec(number(), 1..4)
            .prop_map(|numbers| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",")),
    ]
}

fn any_cron() -> impl Strategy<Value = String> {
    (any_field(0, 59), any_field(0, 23), any_field(1, 28), any_field(1, 12), any_field(0, 6))
        .prop_map(|(minute, hour, day, month, weekday)| format!("{minute} {hour} {day} {month} {weekday}"))
}

/// Zones whose clocks change by an hour at night, by half an hour, at midnight, southern, never, and with odd offsets.
const ZONES: [&str; 8] = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Santiago",
    "Pacific/Chatham",
    "Asia/Kathmandu",
    "Africa/Casablanca",
];

/// Minutes that a brute-force scan looks at: ten days.
const SCAN_MINUTES: i64 = 10 * 24 * 60;

/// What the documentation says, minute by minute: nothing of the searches above.
fn scan(ticks: &Ticks, cron: &croner::Cron, from: Timestamp) -> Option<Timestamp> {
    let minute = 60_000_000;
    let begin = from.as_micros().div_euclid(minute) + 1;
    let shown = |at: i64| Timestamp::from_micros(at * minute).to_chrono().with_timezone(&ticks.zone).naive_local();
    let fits = |wall: NaiveDateTime| {
        let date = croner::CivilDate::from_ymd(wall.year(), wall.month(), wall.day()).unwrap();
        let time = croner::CivilTime::from_hms_opt(wall.hour(), wall.minute(), 0).unwrap();
        let weekday = croner::Weekday::from_days_from_sunday(wall.weekday().num_days_from_sunday());
        let pattern = &cron.pattern;
        pattern.minute_match(time.minute()).unwrap()
            && pattern.hour_match(time.hour()).unwrap()
            && pattern.month_match(date.month()).unwrap()
            && pattern.day_match(date.year(), date.month(), date.day(), weekday).unwrap()
    };
    (begin..begin + SCAN_MINUTES)
        .find(|at| {
            let wall = shown(*at);
            if !ticks.fixed {
                return fits(wall);
            }
            // The moment after a gap stands for all times in the gap; another one counts unless the clock showed it before.
            let gap = wall.signed_duration_since(shown(at - 1)).num_minutes();
            let in_gap = (1..gap).any(|back| fits(wall.checked_sub_signed(TimeDelta::minutes(back)).unwrap()));
            in_gap || (fits(wall) && !(1..=180).any(|back| shown(at - back) == wall))
        })
        .map(|at| Timestamp::from_micros(at * minute))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_next_tick_is_the_one_that_a_scan_of_all_minutes_finds(
        cron in any_cron(), zone in proptest::sample::select(&ZONES[..]),
        // Half of the moments lie within days of a change of clocks in 2026.
        from_s in prop_oneof![
            1_767_225_600_i64..1_830_297_600,
            proptest::sample::select(vec![1_774_746_000_i64, 1_792_890_000, 1_772_953_200, 1_793_512_800, 1_791_043_200, 1_788_667_200])
                .prop_flat_map(|change| change - 200_000..change + 100_000),
        ],
    ) {
        let ticks = Ticks::parse(&cron, zone).unwrap();
        let parsed: croner::Cron = cron.parse().unwrap();
        let from = Timestamp::from_micros(from_s * 1_000_000 + 123);
        let found = ticks.next_after(from).unwrap();
        prop_assert!(found > from, "strictly after");
        match scan(&ticks, &parsed, from) {
            Some(expected) => prop_assert_eq!(ticks.local_text(found), ticks.local_text(expected)),
            None => prop_assert!(found.since(from) >= Duration::from_mins(SCAN_MINUTES.unsigned_abs() - 1)),
        }
    }

    #[test]
    fn any_text_is_read_or_refused(cron in "[0-9*/,\\-#LWSUNMO@?+ ]{0,30}", zone in "[A-Za-z/_+0-9]{0,12}|UTC") {
        if let Ok(ticks) = Ticks::parse(&cron, &zone) {
            prop_assert!(ticks.next_after(CHECKED_FROM).is_some());
        }
    }

    #[test]
    fn the_spread_is_stable_and_stays_within_its_width(org: u128, workflow: u128, spread_s in 0..=SPREAD_MAX_S) {
        let (org, workflow) = (OrgId::from_uuid(uuid::Uuid::from_u128(org)), WorkflowId::from_uuid(uuid::Uuid::from_u128(workflow)));
        let schedule = Schedule { spread_s, ..schedule("0 0 * * *", Misfire::Once, 1) };
        let offset = schedule.offset(org, workflow, "nightly");
        prop_assert_eq!(offset, schedule.offset(org, workflow, "nightly"));
        prop_assert!(offset < Duration::from_secs(u64::from(spread_s)) || (spread_s == 0 && offset.is_zero()));
    }

    #[test]
    fn every_tick_is_fired_missed_or_left_exactly_once(
        every in 1_u32..60, max in 1..=MISFIRE_MAX, misfire in proptest::sample::select(vec![Misfire::Skip, Misfire::Once, Misfire::All]),
        pauses_s in proptest::collection::vec(0_u64..20_000, 1..20), offset_s in 0_u64..3600,
    ) {
        let schedule = schedule(&format!("*/{every} * * * *"), misfire, max);
        let offset = Duration::from_secs(offset_s);
        let begin = at("2026-11-21T00:00:00Z");
        let (mut next, mut now, mut fired, mut missed) = (begin, begin, Vec::new(), 0);
        for pause in pauses_s {
            now = now.plus(Duration::from_secs(pause));
            let settled = schedule.settle(next, offset, now);
            fired.extend(settled.fire.iter().map(|firing| firing.tick));
            missed += settled.missed;
            next = settled.next.unwrap();
            prop_assert!(next.plus(offset) > now, "nothing due is left");
        }
        prop_assert!(fired.is_sorted_by(|one, other| one < other), "none twice: {fired:?}");
        let all = std::iter::successors(Some(begin), |tick| schedule.ticks.next_after(*tick)).take_while(|tick| tick.plus(offset) <= now).count();
        prop_assert_eq!(fired.len() as u64 + missed, all as u64);
    }
}

#[test]
fn a_thousand_organizations_spread_over_the_hour() {
    let schedule = Schedule { spread_s: 3600, ..schedule("0 0 * * *", Misfire::Once, 1) };
    let workflow = WorkflowId::from_uuid(uuid::Uuid::from_u128(1));
    let mut quarters = [0; 4];
    for org in 0..1000_u128 {
        let offset = schedule.offset(OrgId::from_uuid(uuid::Uuid::from_u128(org)), workflow, "nightly");
        quarters[usize::try_from(offset.as_secs() / 900).unwrap()] += 1;
    }
    assert!(quarters.iter().all(|quarter| (200..300).contains(quarter)), "{quarters:?}");
}
