{{/* The rules of policy.yaml, by kind. Only functions that Kubernetes 1.31 has, and no macro in more than two others. */}}

{{- define "ebbtide.policy.pools" -}}
variables:
  # The subnet, or nothing if it is not valid: then only that is reported.
  - name: subnet
    expression: "isCIDR(object.spec.subnet) ? [cidr(object.spec.subnet)] : []"
  - name: ips
    expression: "has(object.spec.ips) ? object.spec.ips : []"
  - name: excluded
    expression: "has(object.spec.excludeIPs) ? object.spec.excludeIPs : []"
  - name: gateway
    expression: "has(object.spec.gateway) ? object.spec.gateway : ''"
  - name: routes
    expression: "has(object.spec.routes) ? object.spec.routes : []"
validations:
  - expression: "isCIDR(object.spec.subnet)"
    message: "subnet is not a prefix, as in 172.31.16.0/20"
  - expression: >-
      variables.subnet.all(net, ['0.0.0.0/8', '127.0.0.0/8', '224.0.0.0/3', '::/128', '::1/128', 'fe80::/10', 'ff00::/8'].all(
      block, !cidr(block).containsCIDR(net)))
    message: "subnet has addresses that no pod can have: loopback, multicast, link-local or reserved ones"
  - expression: "variables.subnet.all(net, variables.ips.all(r, r.split('-').all(e, isIP(e.trim()) && net.containsIP(e.trim()))))"
    message: "ips has what is no address or range of the subnet"
  - expression: "variables.subnet.all(net, variables.excluded.all(r, r.split('-').all(e, isIP(e.trim()) && net.containsIP(e.trim()))))"
    message: "excludeIPs has what is no address or range of the subnet"
  - expression: >-
      variables.ips.all(r, r.contains(':') || !r.contains('-') ||
      [[r.split('-')[0].trim().split('.'), r.split('-')[1].trim().split('.')]].all(e,
      ((int(e[0][0]) * 256 + int(e[0][1])) * 256 + int(e[0][2])) * 256 + int(e[0][3]) <=
      ((int(e[1][0]) * 256 + int(e[1][1])) * 256 + int(e[1][2])) * 256 + int(e[1][3])))
    message: "ips has a range that ends before it begins"
  - expression: >-
      variables.excluded.all(r, r.contains(':') || !r.contains('-') ||
      [[r.split('-')[0].trim().split('.'), r.split('-')[1].trim().split('.')]].all(e,
      ((int(e[0][0]) * 256 + int(e[0][1])) * 256 + int(e[0][2])) * 256 + int(e[0][3]) <=
      ((int(e[1][0]) * 256 + int(e[1][1])) * 256 + int(e[1][2])) * 256 + int(e[1][3])))
    message: "excludeIPs has a range that ends before it begins"
  - expression: >-
      variables.gateway == '' || (isIP(variables.gateway) &&
      (ip(variables.gateway).isGlobalUnicast() || ip(variables.gateway).isLinkLocalUnicast()))
    message: "gateway is no address that a router can have"
  - expression: >-
      variables.subnet.all(net, !isIP(variables.gateway) || variables.gateway.contains(':') || net.prefixLength() > 30 ||
      net.masked().ip() != ip(variables.gateway))
    message: "gateway is the subnet's own address"
  - expression: "!(variables.gateway in variables.ips) || variables.gateway in variables.excluded"
    message: "gateway is among the addresses to hand out: put it into excludeIPs"
  - expression: "variables.routes.all(r, isCIDR(r.dst))"
    message: "routes has a dst that is no prefix, as in 10.0.0.0/8"
  - expression: >-
      variables.subnet.all(net, variables.routes.all(r, isIP(r.gw) && (net.containsIP(r.gw) || r.gw == variables.gateway)))
    message: "routes has a gw that is neither in the subnet nor the pool's gateway"
  - expression: "variables.routes.all(r, variables.routes.exists_one(other, other.dst == r.dst))"
    message: "routes has two routes to one dst"
{{- end -}}

{{- define "ebbtide.policy.networks" -}}
variables:
  - name: ipvlan
    expression: "has(object.spec.ipvlan) ? [object.spec.ipvlan] : []"
  - name: coordinator
    expression: "has(object.spec.coordinator) ? [object.spec.coordinator] : []"
  - name: chain
    expression: "has(object.spec.chainCNIJsonData) ? object.spec.chainCNIJsonData : []"
validations:
  - expression: "variables.ipvlan.all(b, b.master.all(m, m != '.' && m != '..'))"
    message: "ipvlan.master is not an interface's name"
  # A field that nobody reads must not name pools: the default pools would give unintended addresses.
  - expression: "variables.ipvlan.all(b, b.all(k, !k.lowerAscii().contains('pool') || k in ['ippools', 'spiderpoolConfigPools']))"
    message: "ipvlan seems to name pools, but no such field is known: write ippools"
  - expression: "variables.ipvlan.all(b, !has(b.ippools) || b.ippools.all(k, k in ['ipv4', 'ipv6', 'matchMasterSubnet']))"
    message: "ipvlan.ippools has fields ipv4 and ipv6 alone"
  - expression: "variables.ipvlan.all(b, !has(b.spiderpoolConfigPools) || b.spiderpoolConfigPools.all(k, k in ['IPv4IPPool', 'IPv6IPPool']))"
    message: "ipvlan.spiderpoolConfigPools has fields IPv4IPPool and IPv6IPPool alone: better write ippools"
  - expression: >-
      variables.coordinator.all(c, !has(c.hijackCIDR) || c.hijackCIDR.all(d, isIP(d) || isCIDR(d)))
    message: "coordinator.hijackCIDR has what is neither an address nor a prefix"
  - expression: "variables.chain.all(j, j.contains('\"type\"'))"
    message: "chainCNIJsonData has what is no plugin's configuration: it has no type"
{{- end -}}

{{- define "ebbtide.policy.reserved" -}}
variables:
  - name: ips
    expression: "has(object.spec.ips) ? object.spec.ips : []"
validations:
  - expression: "variables.ips.size() > 0"
    message: "ips is missing"
  - expression: "variables.ips.all(r, r.split('-').all(e, isIP(e.trim())))"
    message: "ips has what is neither an address nor a range"
  - expression: "variables.ips.all(r, r.contains(':') == variables.ips[0].contains(':'))"
    message: "ips has addresses of both families: declare a SpiderReservedIP for each"
  - expression: >-
      variables.ips.all(r, r.contains(':') || !r.contains('-') ||
      [[r.split('-')[0].trim().split('.'), r.split('-')[1].trim().split('.')]].all(e,
      ((int(e[0][0]) * 256 + int(e[0][1])) * 256 + int(e[0][2])) * 256 + int(e[0][3]) <=
      ((int(e[1][0]) * 256 + int(e[1][1])) * 256 + int(e[1][2])) * 256 + int(e[1][3])))
    message: "ips has a range that ends before it begins"
{{- end -}}

{{- define "ebbtide.policy.coordinators" -}}
validations:
  - expression: "!has(object.spec.hijackCIDR) || object.spec.hijackCIDR.all(d, isIP(d) || isCIDR(d))"
    message: "hijackCIDR has what is neither an address nor a prefix"
  - expression: "!has(object.spec.policyRoutes) || object.spec.policyRoutes.all(r, (isIP(r.dst) || isCIDR(r.dst)) && isIP(r.gw))"
    message: "policyRoutes has what is no prefix or address, or a gw that is no address"
{{- end -}}
