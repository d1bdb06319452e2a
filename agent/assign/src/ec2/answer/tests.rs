use super::*;

fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// As EC2's reference shows it, with everything that may be told of a NIC.
const DESCRIBED: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<DescribeNetworkInterfacesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">
  <requestId>fc45294c-006b-457b-bab9-012f5b3b0e40</requestId>
  <networkInterfaceSet>
    <item>
      <networkInterfaceId>eni-0f62d866</networkInterfaceId>
      <subnetId>subnet-c53c87ac</subnetId>
      <status>in-use</status>
      <macAddress>02:81:60:cb:27:37</macAddress>
      <privateIpAddress>10.0.0.146</privateIpAddress>
      <attachment>
        <attachmentId>eni-attach-6537fc0c</attachmentId>
        <instanceId>i-22197876</instanceId>
        <status>attached</status>
      </attachment>
      <privateIpAddressesSet>
        <item><privateIpAddress>10.0.0.146</privateIpAddress><primary>true</primary></item>
        <item><privateIpAddress>10.0.0.148</privateIpAddress><primary>false</primary></item>
      </privateIpAddressesSet>
      <ipv6AddressesSet>
        <item><ipv6Address>2001:db8::1</ipv6Address><isPrimaryIpv6>true</isPrimaryIpv6></item>
        <item><ipv6Address>2001:db8::2</ipv6Address></item>
      </ipv6AddressesSet>
      <ipv4PrefixSet><item><ipv4Prefix>10.0.0.16/28</ipv4Prefix></item></ipv4PrefixSet>
      <ipv6PrefixSet><item><ipv6Prefix>2001:db8:0:0:1::/80</ipv6Prefix></item></ipv6PrefixSet>
    </item>
    <item>
      <networkInterfaceId>eni-a66ed5cf</networkInterfaceId>
      <macAddress>02:78:d7:00:8a:1e</macAddress>
      <privateIpAddress>10.0.0.9</privateIpAddress>
    </item>
  </networkInterfaceSet>
  <nextToken>more</nextToken>
</DescribeNetworkInterfacesResponse>"#;

#[test]
fn a_nic_is_read_with_what_is_its_own_and_what_was_assigned() {
    let (nics, next) = described(DESCRIBED).unwrap();
    assert_eq!(next.as_deref(), Some("more"));
    let [nic, bare] = &nics[..] else {
        panic!("{nics:?}");
    };
    assert_eq!(nic.id, "eni-0f62d866");
    assert_eq!(nic.mac.unwrap().to_string(), "02:81:60:cb:27:37");
    assert_eq!(nic.instance.as_deref(), Some("i-22197876"));
    let own: Vec<String> = nic.primary.iter().map(ToString::to_string).collect();
    assert_eq!(own, ["10.0.0.146", "2001:db8::1"]);
    let blocks = nets(&[
        "10.0.0.148/32",
        "10.0.0.16/28",
        "2001:db8::2/128",
        "2001:db8:0:0:1::/80",
    ]);
    assert_eq!(nic.blocks, blocks);
    // A prefix counts as one.
    assert_eq!((nic.slots(Family::V4), nic.slots(Family::V6)), (3, 3));
    assert_eq!(
        (bare.instance.as_deref(), bare.slots(Family::V4)),
        (None, 1)
    );
}

#[test]
fn what_was_assigned_is_read_of_each_of_the_four_lists() {
    for (body, expected) in [
        (
            "<assignedPrivateIpAddressesSet><item><privateIpAddress>10.0.0.5</privateIpAddress></item></assignedPrivateIpAddressesSet>",
            "10.0.0.5/32",
        ),
        (
            "<assignedIpv4PrefixSet><item><ipv4Prefix>10.0.0.16/28</ipv4Prefix></item></assignedIpv4PrefixSet>",
            "10.0.0.16/28",
        ),
        (
            "<assignedIpv6Addresses><item>2001:db8::5</item></assignedIpv6Addresses>",
            "2001:db8::5/128",
        ),
        (
            "<assignedIpv6PrefixSet><item>2001:db8:0:0:1::/80</item></assignedIpv6PrefixSet>",
            "2001:db8:0:0:1::/80",
        ),
    ] {
        let read = assigned(&format!("<Response xmlns=\"x\">{body}</Response>")).unwrap();
        assert_eq!(read, [expected.parse().unwrap()]);
    }
}

#[test]
fn an_answer_that_lacks_what_it_must_have_is_no_answer() {
    // An empty list would mean that a NIC is gone: nothing must look like one that is not.
    for bad in [
        "",
        "<html>",
        "<DescribeNetworkInterfacesResponse/>",
        "<R><networkInterfaceSet><item/></networkInterfaceSet></R>",
        "<R><networkInterfaceSet><item><networkInterfaceId>e</networkInterfaceId><privateIpAddress>x</privateIpAddress>\
         </item></networkInterfaceSet></R>",
        "<!DOCTYPE R [<!ENTITY e \"x\">]><R><networkInterfaceSet>&e;</networkInterfaceSet></R>",
    ] {
        assert!(described(bad).is_err(), "{bad}");
    }
    assert_eq!(
        described("<R><networkInterfaceSet/></R>").unwrap(),
        (vec![], None)
    );
}

#[test]
fn the_limits_are_those_of_the_type_that_was_asked_for() {
    let text = "<R><instanceTypeSet><item><instanceType>m5.large</instanceType><networkInfo>\
                <ipv4AddressesPerInterface>10</ipv4AddressesPerInterface>\
                <ipv6AddressesPerInterface>8</ipv6AddressesPerInterface></networkInfo></item></instanceTypeSet></R>";
    let expected = Limits { v4: 10, v6: 8 };
    assert_eq!(limits(text, "m5.large").unwrap(), Some(expected));
    assert_eq!(limits(text, "m6.large").unwrap(), None);
    assert!(limits("<R/>", "m5.large").is_err());
}
