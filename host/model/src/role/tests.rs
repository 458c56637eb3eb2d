//! The laws of roles: nothing is held that no line gives, and nobody can give what he does not have.

use std::time::Duration;

use proptest::prelude::*;
use uuid::Uuid;

use super::activation::{Answer, REQUEST_LIVES, Request, RequestError, RequestState, check_request};
use super::assignment::{
    Assignment, GrantRefused, Hold, Phase, Standing, Verdict, Window, WindowError, Within, keep_an_admin,
};
use super::*;
use crate::id::{AssignmentId, TeamId, UserId};
use crate::permission::Category;
use crate::time::Timestamp;

fn role(n: u128) -> RoleId {
    RoleId::from_uuid(Uuid::from_u128(n))
}

fn own(n: u128) -> RoleRef {
    RoleRef::Own(role(n))
}

fn user(n: u128) -> UserId {
    UserId::from_uuid(Uuid::from_u128(n))
}

fn team(n: u128) -> TeamId {
    TeamId::from_uuid(Uuid::from_u128(n))
}

fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

fn gives(permissions: &[Permission], inherits: &[RoleRef]) -> Gives {
    Gives { permissions: permissions.iter().copied().collect(), inherits: inherits.to_vec() }
}

fn window(from: Option<i64>, until: Option<i64>) -> Window {
    Window { from: from.map(at), until: until.map(at) }
}

fn assignment(n: u128, role: RoleRef, team: Option<TeamId>, window: Window) -> Assignment {
    Assignment { id: AssignmentId::from_uuid(Uuid::from_u128(n)), user: user(1), role, team, window }
}

#[test]
fn built_in_roles_are_what_the_specification_says() {
    let of = BuiltIn::permissions;
    assert_eq!(of(BuiltIn::ApiUser), PermissionSet::EMPTY);
    assert_eq!(of(BuiltIn::Admin), PermissionSet::all());
    assert_eq!(of(BuiltIn::SuperAdmin).len() as usize, Permission::ALL.len());
    for role in [BuiltIn::Manager, BuiltIn::Analyst, BuiltIn::Viewer] {
        assert!(of(role).is_subset_of(of(BuiltIn::Admin)), "{role}");
        for held in of(role).iter() {
            let reserved = matches!(
                held.category(),
                Category::ApiKeys | Category::Audit | Category::Compliance | Category::Secrets | Category::System
            );
            assert!(!reserved, "{role} holds {held}");
        }
    }
    assert!(
        of(BuiltIn::Viewer).is_subset_of(of(BuiltIn::Analyst))
            && of(BuiltIn::Viewer).is_subset_of(of(BuiltIn::Manager))
    );
    for held in of(BuiltIn::Viewer).iter().filter(|p| *p != Permission::RolesRequest) {
        assert!(
            held.as_str().rsplit_once('.').is_some_and(|(_, act)| act == "read"),
            "a viewer changes nothing: {held}"
        );
    }
    assert!(!of(BuiltIn::Manager).contains(Permission::PluginsGrant));
    assert!(!of(BuiltIn::Manager).contains(Permission::RolesAssign));
}

#[test]
fn a_role_is_named_exactly_or_not_at_all() {
    for role in BuiltIn::ALL {
        assert_eq!(role.as_str().parse(), Ok(RoleRef::BuiltIn(role)));
    }
    assert_eq!(own(7).to_string().parse(), Ok(own(7)));
    for text in ["Admin", "ADMIN", "admin ", "root", "", "*", "role_", "user_00000000000000000000000001", "superadmin"]
    {
        assert_eq!(text.parse::<RoleRef>(), Err(NotARole), "{text:?}");
    }
}

#[test]
fn names_read_like_nothing_that_exists() {
    for good in ["Sales lead", "x", "Vertrieb Süd", "Tier-2_support", "営業"] {
        assert_eq!(good.parse::<RoleName>().map(|name| name.as_str().to_owned()), Ok(good.to_owned()));
    }
    for bad in
        ["", " x", "x ", "a  b", "a - b", "-x", "a\u{0}b", "a\tb", "a\u{200b}b", "a\u{202e}b", "a/b", &"x".repeat(61)]
    {
        assert_eq!(bad.parse::<RoleName>(), Err(RoleNameError::Form), "{bad:?}");
    }
    for taken in ["admin", "ADMIN", "Ad-min", "super admin", "SuperAdmin", "Super_Admin", "api user", "Viewer"] {
        assert!(matches!(taken.parse::<RoleName>(), Err(RoleNameError::BuiltIn(_))), "{taken}");
    }
    let key = |text: &str| text.parse::<RoleName>().unwrap().key();
    assert_eq!(key("Sales lead"), key("SALES-LEAD"));
    assert_ne!(key("Sales lead"), key("Sales leads"));
}

#[test]
fn inheritance_is_bounded_and_does_not_go_in_circles() {
    let chain = |n: u128| -> Roles {
        (1..=n)
            .map(|id| {
                let parents = if id == 1 { vec![] } else { vec![own(id - 1)] };
                (role(id), gives(&[Permission::LeadsRead], &parents))
            })
            .collect()
    };
    assert_eq!(chain(5).check(), Ok(()));
    assert_eq!(chain(6).check(), Err(RoleError::TooDeep(own(6))));
    let on_built_in: Roles = chain(5).with(role(1), gives(&[], &[RoleRef::BuiltIn(BuiltIn::Viewer)]));
    assert_eq!(on_built_in.check(), Err(RoleError::TooDeep(own(5))), "a built-in role is a level as well");
    // Making the lowest one deeper is found at the highest.
    let longer = chain(5).with(role(9), gives(&[Permission::LeadsRead], &[])).with(role(1), gives(&[], &[own(9)]));
    assert_eq!(longer.check(), Err(RoleError::TooDeep(own(5))));

    let round = chain(3).with(role(1), gives(&[], &[own(3)]));
    assert!(matches!(round.check(), Err(RoleError::Cycle(way)) if way.first() == way.last() && way.len() == 4));
    let itself = chain(1).with(role(1), gives(&[], &[own(1)]));
    assert_eq!(itself.check(), Err(RoleError::Cycle(vec![own(1), own(1)])));
}

#[test]
fn a_role_that_cannot_be_is_refused_with_its_reason() {
    let check = |gives: Gives| Roles::default().with(role(1), gives).check();
    assert_eq!(check(gives(&[], &[])), Err(RoleError::Empty));
    assert_eq!(check(gives(&[Permission::SystemEnter], &[])), Err(RoleError::OfPlatform(Permission::SystemEnter)));
    let super_admin = RoleRef::BuiltIn(BuiltIn::SuperAdmin);
    assert_eq!(check(gives(&[], &[super_admin])), Err(RoleError::NotInheritable(BuiltIn::SuperAdmin)));
    assert_eq!(check(gives(&[], &[own(2)])), Err(RoleError::Unknown(own(2))));
    let viewer = RoleRef::BuiltIn(BuiltIn::Viewer);
    assert_eq!(check(gives(&[], &[viewer, viewer])), Err(RoleError::Repeated(viewer)));
    let many: Roles = (1..=12).map(|id| (role(id), gives(&[Permission::LeadsRead], &[]))).collect();
    let parents: Vec<RoleRef> = (2..=12).map(own).collect();
    assert_eq!(many.with(role(1), gives(&[], &parents)).check(), Err(RoleError::TooManyParents));
    let roles: Roles = (1..=101).map(|id| (role(id), gives(&[Permission::LeadsRead], &[]))).collect();
    assert_eq!(roles.check(), Err(RoleError::TooManyRoles));
}

#[test]
fn what_is_stored_wrongly_gives_nothing_more() {
    // None of this passes `check`; all of it could stand in a database that somebody else wrote to.
    let roles = Roles::default()
        .with(
            role(1),
            gives(&[Permission::LeadsRead, Permission::SystemEnter], &[own(2), RoleRef::BuiltIn(BuiltIn::SuperAdmin)]),
        )
        .with(role(2), gives(&[Permission::DealsRead], &[own(1), own(3)]));
    let held: Vec<Permission> = roles.permissions_of(own(1)).iter().collect();
    assert_eq!(held, [Permission::LeadsRead, Permission::DealsRead]);
    assert_eq!(roles.permissions_of(RoleRef::BuiltIn(BuiltIn::SuperAdmin)), PermissionSet::EMPTY);
    assert_eq!(roles.permissions_of(own(3)), PermissionSet::EMPTY);
    let deep: Roles = (1..=9)
        .map(|id| {
            let permission = if id == 1 { Permission::RolesWrite } else { Permission::LeadsRead };
            (role(id), gives(&[permission], &if id == 1 { vec![] } else { vec![own(id - 1)] }))
        })
        .collect();
    assert!(!deep.permissions_of(own(9)).contains(Permission::RolesWrite), "no further than the depth allowed");
    assert!(deep.permissions_of(own(5)).contains(Permission::RolesWrite));
}

#[test]
fn a_window_begins_and_ends_on_the_instant() {
    let some = window(Some(10), Some(20));
    for (now, phase) in [(9, Phase::NotYet), (10, Phase::Now), (19, Phase::Now), (20, Phase::Over)] {
        assert_eq!(some.at(at(now)), phase, "{now}");
    }
    assert_eq!(Window::ALWAYS.at(at(i64::MIN)), Phase::Now);
    assert_eq!(window(Some(10), Some(10)).check(at(0)), Err(WindowError::Backwards));
    assert_eq!(window(None, Some(10)).check(at(10)), Err(WindowError::Over));
    assert_eq!(window(Some(5), Some(10)).check(at(9)), Ok(()));
    // One that is no window holds at no instant.
    assert_ne!(window(Some(20), Some(10)).at(at(15)), Phase::Now);
}

#[test]
fn a_right_is_held_as_long_as_one_window_takes_over_from_another() {
    let roles = Roles::default();
    let (viewer, manager) = (RoleRef::BuiltIn(BuiltIn::Viewer), RoleRef::BuiltIn(BuiltIn::Manager));
    let hold = |given: Vec<Assignment>, wanted: &[Permission], now: i64| {
        Standing::new(given, &roles).hold(wanted.iter().copied().collect(), Within::Organization, at(now))
    };
    let first = assignment(1, viewer, None, window(None, Some(10)));
    let second = assignment(2, manager, None, window(Some(10), Some(20)));
    let later = assignment(3, viewer, None, window(Some(21), None));
    let read = &[Permission::LeadsRead];
    assert_eq!(hold(vec![first, second, later], read, 0), Hold::Until(at(20)), "not over the gap");
    assert_eq!(hold(vec![first, second, assignment(3, viewer, None, window(Some(15), None))], read, 0), Hold::Forever);
    assert_eq!(hold(vec![second], read, 0), Hold::Lacks(read.iter().copied().collect()));
    let both = &[Permission::LeadsRead, Permission::LeadsWrite];
    assert_eq!(hold(vec![first, second], both, 0), Hold::Lacks(PermissionSet::one(Permission::LeadsWrite)));
    assert_eq!(hold(vec![assignment(1, viewer, None, Window::ALWAYS), second], both, 12), Hold::Until(at(20)));
    assert_eq!(
        hold(vec![], &[], 0),
        Hold::Forever,
        "nothing is held by everybody: whoever asks must not ask for nothing"
    );
}

#[test]
fn nobody_gives_more_or_longer_than_he_has() {
    let missing = PermissionSet::one(Permission::RolesWrite);
    assert_eq!(Hold::Lacks(missing).may_give(Some(at(1))), Err(GrantRefused::Lacks(missing)));
    assert_eq!(Hold::Lacks(missing).may_take(), Err(GrantRefused::Lacks(missing)));
    assert_eq!(Hold::Until(at(10)).may_give(None), Err(GrantRefused::Outlives(at(10))));
    assert_eq!(Hold::Until(at(10)).may_give(Some(at(11))), Err(GrantRefused::Outlives(at(10))));
    assert_eq!(Hold::Until(at(10)).may_give(Some(at(10))), Ok(()));
    assert_eq!(Hold::Until(at(10)).may_take(), Ok(()));
    assert_eq!(Hold::Forever.may_give(None), Ok(()));
}

#[test]
fn the_last_admin_stays() {
    let admin = RoleRef::BuiltIn(BuiltIn::Admin);
    assert!(assignment(1, admin, None, Window::ALWAYS).is_lasting_admin(at(0)));
    assert!(assignment(1, admin, None, window(Some(0), None)).is_lasting_admin(at(0)));
    for passing in [
        assignment(1, admin, Some(team(1)), Window::ALWAYS),
        assignment(1, admin, None, window(None, Some(100))),
        assignment(1, admin, None, window(Some(1), None)),
        assignment(1, RoleRef::BuiltIn(BuiltIn::Manager), None, Window::ALWAYS),
        assignment(1, own(1), None, Window::ALWAYS),
    ] {
        assert!(!passing.is_lasting_admin(at(0)), "{passing:?}");
    }
    assert!(keep_an_admin(1, 0).is_err() && keep_an_admin(5, 0).is_err());
    assert!(keep_an_admin(2, 1).is_ok() && keep_an_admin(0, 0).is_ok() && keep_an_admin(0, 1).is_ok());
}

#[test]
fn a_request_is_answered_once_in_time_and_by_somebody_else() {
    let request =
        Request { asked_by: user(1), asked_at: at(0), duration: Duration::from_hours(4), state: RequestState::Waiting };
    let answer = |answer, by, now| request.answer(answer, by, now);
    assert_eq!(answer(Answer::Approve, user(2), at(1)), Ok(RequestState::Approved));
    assert_eq!(answer(Answer::Refuse, user(2), at(1)), Ok(RequestState::Refused));
    assert_eq!(answer(Answer::Withdraw, user(1), at(1)), Ok(RequestState::Withdrawn));
    assert_eq!(answer(Answer::Approve, user(1), at(1)), Err(RequestError::OwnRequest));
    assert_eq!(answer(Answer::Refuse, user(1), at(1)), Err(RequestError::OwnRequest));
    assert_eq!(answer(Answer::Withdraw, user(2), at(1)), Err(RequestError::NotOwnRequest));
    let late = at(0).plus(REQUEST_LIVES);
    for kind in [Answer::Approve, Answer::Refuse] {
        assert_eq!(answer(kind, user(2), late), Err(RequestError::Lapsed));
    }
    for state in [RequestState::Approved, RequestState::Refused, RequestState::Withdrawn] {
        let done = Request { state, ..request };
        for (kind, by) in [(Answer::Approve, 2), (Answer::Refuse, 2), (Answer::Withdraw, 1)] {
            assert_eq!(done.answer(kind, user(by), at(1)), Err(RequestError::Answered));
        }
        assert!(!done.is_open(at(1)));
    }
    assert_eq!(request.window(at(5)), window(Some(5), Some(5 + 4 * 3_600_000_000)));
}

#[test]
fn a_request_says_what_for_and_how_long() {
    let hour = Duration::from_hours(1);
    assert_eq!(check_request("restore a customer's data", hour), Ok(()));
    for reason in ["", "because", &" ".repeat(50), &"x".repeat(501)] {
        assert_eq!(check_request(reason, hour), Err(RequestError::Reason), "{reason:?}");
    }
    for duration in [Duration::ZERO, Duration::from_secs(299), Duration::from_secs(8 * 3600 + 1)] {
        assert_eq!(check_request("restore a customer's data", duration), Err(RequestError::Duration));
    }
    assert_eq!(check_request("restore a customer's data", Duration::from_hours(8)), Ok(()));
}

/// A permission by a number.
fn permissions() -> impl Strategy<Value = PermissionSet> {
    any::<u128>().prop_map(|bits| Permission::ALL.iter().copied().filter(|p| bits & (1 << *p as u8) != 0).collect())
}

/// Six roles of the organization's own, which inherit in any way, round about included.
fn any_roles() -> impl Strategy<Value = Roles> {
    let one = (permissions(), proptest::collection::vec(0_usize..8, 0..4)).prop_map(|(permissions, parents)| {
        let parent = |n: usize| if n >= 6 { RoleRef::BuiltIn(BuiltIn::ALL[n - 5]) } else { own(n as u128) };
        Gives { permissions, inherits: parents.into_iter().map(parent).collect() }
    });
    proptest::collection::vec(one, 6).prop_map(|all| (0_u128..).map(role).zip(all).collect())
}

fn any_role() -> impl Strategy<Value = RoleRef> {
    (0_usize..12).prop_map(|n| if n < 6 { own(n as u128) } else { RoleRef::BuiltIn(BuiltIn::ALL[n - 6]) })
}

fn any_assignments() -> impl Strategy<Value = Vec<Assignment>> {
    let end = || proptest::option::of(0_i64..50);
    let one = (any_role(), proptest::option::of(0_u128..3), end(), end());
    proptest::collection::vec(one, 0..6).prop_map(|all| {
        (0_u128..)
            .zip(all)
            .map(|(n, (role, of, from, until))| assignment(n, role, of.map(team), window(from, until)))
            .collect()
    })
}

fn any_place() -> impl Strategy<Value = Within> {
    proptest::option::of(0_u128..4).prop_map(|n| n.map_or(Within::Organization, |n| Within::Team(team(n))))
}

proptest! {
    #[test]
    fn a_role_gives_its_own_and_what_it_inherits_and_nothing_else(roles in any_roles()) {
        for n in 0..6 {
            let all = roles.permissions_of(own(n));
            prop_assert!(all.is_subset_of(PermissionSet::all()));
            for permission in Permission::ALL.iter().copied() {
                let way = roles.way_to(own(n), permission);
                prop_assert_eq!(way.is_some(), all.contains(permission));
                if let Some(way) = way {
                    prop_assert!(way.len() <= DEPTH_MAX && way[0] == own(n));
                    prop_assert!(way.windows(2).all(|step| roles.parents(step[0]).contains(&step[1])));
                    prop_assert!(roles.own(way[way.len() - 1]).contains(permission));
                }
            }
        }
        if roles.check().is_ok() {
            for n in 0..6 {
                let inherited = roles.parents(own(n)).iter().map(|parent| roles.permissions_of(*parent));
                let union = inherited.fold(roles.own(own(n)), PermissionSet::union);
                prop_assert_eq!(roles.permissions_of(own(n)), union);
            }
        }
    }

    #[test]
    fn a_further_role_or_permission_takes_nothing_away(
        roles in any_roles(), given in any_assignments(), more in any_assignments(), within in any_place(), now in 0_i64..60,
    ) {
        let some = Standing::new(given.clone(), &roles).permissions(within, at(now));
        let all = Standing::new(given.into_iter().chain(more), &roles).permissions(within, at(now));
        prop_assert!(some.is_subset_of(all));
        prop_assert!(all.is_subset_of(PermissionSet::all()));
    }

    #[test]
    fn only_what_a_window_holds_now_counts(roles in any_roles(), given in any_assignments(), within in any_place(), now in 0_i64..60) {
        let standing = Standing::new(given.clone(), &roles);
        let expected = given
            .iter()
            .filter(|a| a.window.from.is_none_or(|from| from <= at(now)) && a.window.until.is_none_or(|until| at(now) < until))
            .filter(|a| a.team.is_none_or(|of| within == Within::Team(of)))
            .fold(PermissionSet::EMPTY, |set, a| set.union(roles.permissions_of(a.role)));
        prop_assert_eq!(standing.permissions(within, at(now)), expected);
    }

    #[test]
    fn time_alone_ends_rights_and_begins_only_those_that_were_given(given in any_assignments(), now in 0_i64..60, later in 0_i64..60) {
        let roles = Roles::default();
        let begun: Vec<Assignment> = given.into_iter().filter(|a| a.window.from.is_none_or(|from| from <= at(now))).collect();
        let standing = Standing::new(begun, &roles);
        let (first, second) = (at(now), at(now.max(later)));
        let before = standing.permissions(Within::Organization, first);
        prop_assert!(standing.permissions(Within::Organization, second).is_subset_of(before));
    }

    #[test]
    fn the_explanation_agrees_with_the_decision(
        roles in any_roles(), given in any_assignments(), within in any_place(), now in 0_i64..60,
    ) {
        let standing = Standing::new(given, &roles);
        let held = standing.permissions(within, at(now));
        for permission in Permission::ALL.iter().copied() {
            let why = standing.explain(&roles, permission, within, at(now));
            prop_assert_eq!(why.is_allowed, held.contains(permission));
            prop_assert_eq!(why.is_allowed, why.reasons.first().is_some_and(|first| first.verdict == Verdict::Counts));
            for reason in &why.reasons {
                prop_assert!(why.holders.contains(&reason.assignment.role));
                prop_assert_eq!(reason.way.first(), Some(&reason.assignment.role));
            }
        }
    }

    #[test]
    fn a_hold_is_true_at_each_instant_that_it_covers_and_ends_where_it_says(
        given in any_assignments(), wanted in permissions(), within in any_place(), now in 0_i64..60,
    ) {
        let standing = Standing::new(given, &Roles::default());
        let holds = |moment: i64| wanted.is_subset_of(standing.permissions(within, at(moment)));
        match standing.hold(wanted, within, at(now)) {
            Hold::Lacks(missing) => {
                prop_assert!(!missing.is_empty() && missing.is_subset_of(wanted) && !holds(now));
            }
            Hold::Until(end) => {
                let end = end.as_micros();
                prop_assert!((now..end).all(holds) && !holds(end));
            }
            Hold::Forever => prop_assert!((now..100).all(holds)),
        }
    }

    /// Whoever may give, by the rule, cannot raise anybody above himself: not at any instant, not anywhere.
    #[test]
    fn giving_escalates_nobody(
        roles in any_roles(), given in any_assignments(), role in any_role(), until in proptest::option::of(0_i64..60),
        from in proptest::option::of(0_i64..60), within in any_place(), now in 0_i64..60,
    ) {
        let giver = Standing::new(given, &roles);
        let team = match within { Within::Organization => None, Within::Team(team) => Some(team) };
        let gift = assignment(99, role, team, window(from, until));
        let hold = giver.hold(roles.permissions_of(role), within, at(now));
        if hold.may_give(gift.window.until).is_ok() {
            let receiver = Standing::new([gift], &roles);
            for moment in now..100 {
                for place in [Within::Organization, Within::Team(super::tests::team(0)), within] {
                    let has = receiver.permissions(place, at(moment));
                    prop_assert!(has.is_subset_of(giver.permissions(place, at(moment))), "at {moment}");
                }
            }
        }
    }

    #[test]
    fn any_text_is_read_without_panic(text: String) {
        let _ = text.parse::<RoleRef>();
        let _ = text.parse::<RoleName>();
    }
}
