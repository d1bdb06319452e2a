use std::time::Duration;

use aws_credential_types::Credentials;

use super::*;
use crate::{
    credentials::Source,
    double::{PrefixDouble, answer},
};

fn client(double: &PrefixDouble) -> Ec2 {
    let keys = Credentials::new("AKID", "hush", None, None, "test");
    let transport = Transport::new(None).unwrap().within(Duration::from_secs(2));
    let provider = Provider::new(Source::Environment(keys), transport.clone());
    let endpoint = double.url.parse().unwrap();
    Ec2::new(transport, endpoint, "eu-west-1".into(), provider)
}

#[tokio::test]
async fn whole_prefixes_come_and_go_and_a_full_nic_says_so_with_an_advice() {
    let double = PrefixDouble::start().await;
    let ec2 = client(&double);
    let now = SystemTime::now();
    let assign = |count| ec2.assign("eni-1", Family::V4, Amount::Prefixes(count), now);
    let given = assign(2).await.unwrap();
    let expected: Vec<IpNet> = ["10.0.0.16/28", "10.0.0.32/28"]
        .map(|net| net.parse().unwrap())
        .into();
    assert_eq!(given, expected);
    let full = assign(2).await.unwrap_err();
    assert_eq!(full.reason(), Some(Reason::NicFull));
    assert!(full.is_without_effect() && !full.is_general());
    let said = full.to_string();
    assert!(
        said.starts_with("AssignPrivateIpAddresses: PrivateIpAddressLimitExceeded: too many (request r-9); the instance type"),
        "{said}"
    );
    ec2.unassign("eni-1", Family::V4, &given[..1], now)
        .await
        .unwrap();
    assert!(
        double.last().contains("&Ipv4Prefix.1=10.0.0.16%2F28"),
        "{}",
        double.last()
    );
    let nics = ec2.describe(&["eni-1".to_owned()]).await.unwrap();
    assert_eq!(nics[0].blocks, [given[1]].into());
}

#[tokio::test]
async fn addresses_of_both_families_are_taken_by_their_own_fields() {
    let double = PrefixDouble::start().await;
    let ec2 = client(&double);
    for (family, blocks, said) in [
        (
            Family::V4,
            ["10.0.0.5/32", "10.0.0.16/28"],
            "Action=UnassignPrivateIpAddresses&Version=2016-11-15&NetworkInterfaceId=eni-1&PrivateIpAddress.1=10.0.0.5\
             &Ipv4Prefix.1=10.0.0.16%2F28",
        ),
        (
            Family::V6,
            ["2001:db8::5/128", "2001:db8:0:0:1::/80"],
            "Action=UnassignIpv6Addresses&Version=2016-11-15&NetworkInterfaceId=eni-1&Ipv6Addresses.1=2001%3Adb8%3A%3A5\
             &Ipv6Prefix.1=2001%3Adb8%3A0%3A0%3A1%3A%3A%2F80",
        ),
    ] {
        double.then(answer(200, "<R/>"));
        let blocks = blocks.map(|block| block.parse().unwrap());
        ec2.unassign("eni-1", family, &blocks, SystemTime::now())
            .await
            .unwrap();
        assert!(double.last().ends_with(said), "{}", double.last());
    }
}

#[tokio::test]
async fn a_change_is_signed_with_the_time_at_which_the_lease_was_verified() {
    let double = PrefixDouble::start().await;
    let ec2 = client(&double);
    let verified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    ec2.assign("eni-1", Family::V4, Amount::Prefixes(1), verified)
        .await
        .unwrap();
    assert!(
        double.last().contains("x-amz-date: 20231114T221320Z"),
        "{}",
        double.last()
    );
    // Never with a time to come, whatever a clock said.
    let later = SystemTime::now() + Duration::from_secs(3600);
    ec2.assign("eni-1", Family::V4, Amount::Prefixes(1), later)
        .await
        .unwrap();
    let year = &double.last();
    let date = year.split("x-amz-date: ").nth(1).unwrap();
    let now = k8s_openapi::jiff::Timestamp::now()
        .strftime("%Y%m%dT%H%M")
        .to_string();
    assert!(date[..13] <= now[..], "{date} {now}");
}

#[tokio::test]
async fn what_is_no_answer_is_an_error_and_it_is_known_whether_something_may_have_happened() {
    let double = PrefixDouble::start().await;
    let ec2 = client(&double);
    let long = answer(200, &"x".repeat(9 << 20));
    let code = |code: &str| {
        format!("<Response><Errors><Error><Code>{code}</Code></Error></Errors></Response>")
    };
    for (raw, general, certain, word) in [
        (
            answer(503, &code("RequestLimitExceeded")),
            true,
            true,
            "waits",
        ),
        (
            answer(403, &code("UnauthorizedOperation")),
            true,
            true,
            "rights",
        ),
        (answer(400, &code("RequestExpired")), true, true, "clock"),
        // Not followed.
        (
            "HTTP/1.1 302 X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
                .to_owned(),
            false,
            true,
            "302",
        ),
        (long, true, false, "longer than 8 MiB"),
        (answer(200, "<html>"), false, false, "no XML"),
        (String::new(), true, false, "gave no answer in 2s"),
        (
            "HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\nx".to_owned(),
            true,
            false,
            "broke",
        ),
    ] {
        double.then(raw);
        let given = ec2
            .assign("eni-1", Family::V4, Amount::Addresses(1), SystemTime::now())
            .await;
        let error = given.unwrap_err();
        let facts = (error.is_general(), error.is_without_effect());
        assert_eq!(facts, (general, certain), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    let nobody: Endpoint = "http://127.0.0.1:1".parse().unwrap();
    let ec2 = Ec2 {
        endpoint: nobody,
        ..ec2
    };
    let error = ec2.describe(&["eni-1".to_owned()]).await.unwrap_err();
    assert!(error.is_without_effect() && error.is_general(), "{error}");
}

#[tokio::test]
async fn all_pages_are_read() {
    let double = PrefixDouble::start().await;
    let ec2 = client(&double);
    let page = |id: &str, next: &str| {
        answer(
            200,
            &format!(
                "<R><networkInterfaceSet><item><networkInterfaceId>{id}</networkInterfaceId></item></networkInterfaceSet>\
             <nextToken>{next}</nextToken></R>"
            ),
        )
    };
    double.then(page("eni-1", "a b"));
    double.then(page("eni-2", ""));
    let nics = ec2
        .describe(&["eni-1".to_owned(), "eni-2".to_owned()])
        .await
        .unwrap();
    assert_eq!(nics.len(), 2);
    assert!(
        double.last().ends_with("&NextToken=a%20b"),
        "{}",
        double.last()
    );
}
