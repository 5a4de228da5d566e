//! Unit tests of `budget` and of `charges`, which count in it.

use super::*;
use crate::charges::{Charge, IncompleteMessage, ReplyBuf, Reservation, OPEN_CALL};
use bytes::{Buf, Bytes};

const MB: usize = 1 << 20;

fn is_shed(connection: &Registration) -> bool {
    connection.0.is_shed.load(Relaxed)
}

#[test]
fn every_charge_is_released() {
    let budget = Budget::new(1000);
    let connection = budget.register(true);
    let mut reservation = Reservation::new(connection.0.clone(), 5 * MB);
    reservation.set(7 * MB);
    assert!(connection.0.has_capacity(MB) && !connection.0.has_capacity(2 * MB));
    let mut reply = ReplyBuf::new(Bytes::from_static(b"reply"), connection.0.clone());
    assert_eq!((connection.0.unsent(), budget.reply_bytes.load(Relaxed)), (5, 7 * MB + 5));
    drop(reservation);
    assert_eq!(&reply.copy_to_bytes(5)[..], b"reply");
    assert_eq!((connection.0.unsent(), budget.reply_bytes.load(Relaxed)), (5, 5));
    drop(reply);
    assert_eq!((connection.0.unsent(), budget.reply_bytes.load(Relaxed)), (0, 0));
    let mut message = IncompleteMessage::new(connection.0.clone());
    message.set(900).unwrap();
    message.set(400).unwrap();
    assert_eq!(budget.incomplete.load(Relaxed), 400);
    drop(message);
    assert_eq!(budget.incomplete.load(Relaxed), 0);
    drop(connection);
    assert!(budget.usages().is_empty());
}

#[test]
fn a_reply_larger_than_the_limit_is_allowed_if_nothing_else_is_unread() {
    let connection = Budget::new(1000).register(true);
    assert!(connection.0.has_capacity(100 * MB));
    let _charge = Charge::new(connection.0.clone(), 9 * MB);
    assert!(connection.0.has_capacity(SMALL_REPLY) && !connection.0.has_capacity(SMALL_REPLY + 1));
    let _more = Charge::new(connection.0.clone(), 15 * MB);
    assert!(!connection.0.has_capacity(1));
}

#[test]
fn at_the_limit_of_the_process_the_connection_that_holds_most_is_closed() {
    let budget = Budget::new(1000);
    let (small, large) = (budget.register(true), budget.register(true));
    let _charges = [(&small, 7), (&large, 95)].map(|(connection, mb)| Charge::new(connection.0.clone(), mb * MB));
    let empty = budget.register(true);
    assert!(empty.0.check_replies().is_ok() && !is_shed(&large)); // it holds nothing itself
    assert!(small.0.check_replies().is_ok());
    assert!(is_shed(&large) && !is_shed(&small));
    assert!(small.0.check_replies().is_ok() && !is_shed(&small)); // the large one is being closed
    drop(large);
    assert_eq!(small.0.check_replies().unwrap_err().code, RESOURCE_EXHAUSTED); // now it holds most
}

#[test]
fn unauthenticated_connections_have_a_lower_limit_that_closes_only_them() {
    let budget = Budget::new(1000);
    let (known, large, small) = (budget.register(true), budget.register(false), budget.register(false));
    let [mut a, mut b, mut c] = [&known, &large, &small].map(|connection| IncompleteMessage::new(connection.0.clone()));
    b.set(UNAUTHENTICATED_INCOMPLETE).unwrap();
    a.set(10 * UNAUTHENTICATED_INCOMPLETE).unwrap();
    c.set(OPEN_CALL).unwrap(); // a connection that holds little is served
    assert_eq!([&known, &large, &small].map(is_shed), [false, true, false]);
    drop((b, c, large));
    small.0.set_authenticated();
    IncompleteMessage::new(small.0.clone()).set(MB).unwrap(); // it counts for the higher limit now, which is reached
    assert_eq!([&known, &small].map(is_shed), [true, false]);
}
