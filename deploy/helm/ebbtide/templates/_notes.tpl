{{/* The values that this chart reads: what is empty here may have anything in it. */}}
{{- define "ebbtide.known" -}}
global: {imageRegistryOverride: }
image: {registry: , repository: , tag: , digest: , pullPolicy: }
imagePullSecrets:
ipam: {enableStatefulSet: }
multus: {multusCNI: {defaultCniCRName: }}
plugins: {installCNI: }
admissionPolicy: {enabled: }
accountPolicy: {enabled: }
controller: {replicas: , nodeSelector: , resources: }
cni: {binDir: , confDir: , confName: , conflist: }
agent:
  config:
  logFormat:
  logLevel:
  resources:
  apiServer: {host: , port: }
  nodeSelector:
  privileged:
  hostPID:
  hostRoot:
  seLinuxOptions:
{{- end -}}

{{/* The values that it does not read, one a line: each with its whole path. */}}
{{- define "ebbtide.unknown" -}}
{{- $known := .known -}}
{{- $path := .path -}}
{{- range $key, $value := .values }}
{{- $at := printf "%s%s" $path $key }}
{{- $there := hasKey $known $key }}
{{- $below := ternary (get $known $key) dict $there }}
{{- if and (kindIs "map" $value) (or (not $there) (kindIs "map" $below)) }}
{{- include "ebbtide.unknown" (dict "values" $value "known" $below "path" (printf "%s." $at)) }}
{{- else if not $there }}
{{ $at }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Why, and what does it instead: mostly for values of Spiderpool's chart. */}}
{{- define "ebbtide.why" -}}
{{- if hasPrefix "clusterDefaultPool." . -}}
no pool is made; write a SpiderIPPool with default: true
{{- else if hasPrefix "coordinator." . -}}
no SpiderCoordinator is made of it; write one (hijackCIDR, podDefaultRouteNIC and podCIDRType: cluster have an effect there)
{{- else if hasPrefix "ipam.enableIPv" . -}}
a pod has an address of each family that a pool for it has
{{- else if or (hasPrefix "ipam.enableSpiderSubnet" .) (hasPrefix "ipam.subnet" .) (hasPrefix "ipam.enableAutoPool" .) -}}
there are no subnets and no automatic pools; write SpiderIPPools
{{- else if hasPrefix "ipam.gc." . -}}
addresses are free by evidence that the pod is gone, not after some time
{{- else if hasPrefix "ipam.enableKubevirt" . -}}
virtual machines have no address of their own that moves along
{{- else if hasPrefix "ipam." . -}}
this agent has no such setting of its address management
{{- else if hasPrefix "multus." . -}}
no Multus is installed; for one in front see cni.confName
{{- else if hasPrefix "plugins." . -}}
no other plugins are installed
{{- else if hasPrefix "spiderpoolAgent." . -}}
the agent's values are those below agent
{{- else if hasPrefix "spiderpoolController." . -}}
the controller's values are those below controller
{{- else if hasPrefix "global." . -}}
only global.imageRegistryOverride is read
{{- else -}}
this chart has no such value
{{- end -}}
{{- end -}}
