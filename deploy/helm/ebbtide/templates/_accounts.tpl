{{/* The rules of accounts.yaml, by policy. Only functions that Kubernetes 1.30 has. */}}

{{/* The node that the request's token is of; empty if it does not say. */}}
{{- define "ebbtide.accounts.node" -}}
- name: node
  expression: "request.userInfo.?extra[?'authentication.kubernetes.io/node-name'][?0].orValue('')"
{{- end -}}

{{- define "ebbtide.accounts.of-a-node" -}}
- expression: "variables.node != ''"
  message: >-
    this token does not say which node it is of: tokens of pods do from Kubernetes 1.30 on; delete the agent's pod if it is
    older than the API server, and it gets a new one
{{- end -}}

{{- define "ebbtide.accounts.node-pods" -}}
variables:
{{ include "ebbtide.accounts.node" . | indent 2 }}
  - name: now
    expression: "object.metadata.?annotations.orValue({})"
  - name: was
    expression: "oldObject.metadata.?annotations.orValue({})"
  - name: own
    expression: "['k8s.v1.cni.cncf.io/network-status', 'k8s.v1.cni.cncf.io/networks-status']"
validations:
{{ include "ebbtide.accounts.of-a-node" . | indent 2 }}
  - expression: "oldObject.spec.?nodeName.orValue('') == variables.node"
    message: "an agent writes to pods of its own node alone"
  - expression: >-
      object.?status == oldObject.?status && object.metadata.?labels == oldObject.metadata.?labels &&
      object.metadata.?finalizers == oldObject.metadata.?finalizers &&
      object.metadata.?ownerReferences == oldObject.metadata.?ownerReferences
    message: "an agent changes annotations of a pod, and nothing else of it"
  - expression: >-
      variables.now.all(k, k in variables.own || (k in variables.was && variables.was[k] == variables.now[k])) &&
      variables.was.all(k, k in variables.own || k in variables.now)
    message: "an agent changes no annotation but k8s.v1.cni.cncf.io/network-status"
{{- end -}}

{{- define "ebbtide.accounts.node-endpoints" -}}
variables:
{{ include "ebbtide.accounts.node" . | indent 2 }}
  - name: was
    expression: "request.operation == 'CREATE' ? '' : oldObject.?status.?current.?node.orValue('')"
  - name: now
    expression: "request.operation == 'DELETE' ? '' : object.?status.?current.?node.orValue('')"
  - name: uid
    expression: "request.operation == 'DELETE' ? '' : object.?status.?current.?uid.orValue('')"
  - name: label
    expression: "request.operation == 'DELETE' ? variables.node : object.metadata.?labels[?'ebbtide.io/node'].orValue(variables.node)"
  - name: owners
    expression: "request.operation == 'DELETE' ? [] : object.metadata.?ownerReferences.orValue([])"
  - name: finalizers
    expression: "request.operation == 'DELETE' ? [] : object.metadata.?finalizers.orValue([])"
  - name: finalizersBefore
    expression: "request.operation == 'UPDATE' ? oldObject.metadata.?finalizers.orValue([]) : []"
validations:
{{ include "ebbtide.accounts.of-a-node" . | indent 2 }}
  # A pod of this name that has moved: the object that its former node wrote is deleted with the former pod.
  - expression: "request.operation == 'CREATE' || variables.was == variables.node || (variables.was == '' && request.operation == 'UPDATE')"
    message: "this SpiderEndpoint is another node's, whose agent deletes it when that pod is gone, as does the garbage collector"
  - expression: "request.operation == 'DELETE' || (variables.now == variables.node && variables.label == variables.node)"
    message: "an agent writes SpiderEndpoints of its own node alone (status.current.node, and the label ebbtide.io/node)"
  - expression: >-
      request.operation == 'DELETE' || (variables.owners.all(o, o.kind == 'Pod' && o.name == object.metadata.name) &&
      variables.owners.exists(o, o.uid == variables.uid))
    message: "a SpiderEndpoint that an agent writes belongs to its pod, and goes with it"
  - expression: "variables.finalizers.all(f, f in variables.finalizersBefore)"
    message: "an agent keeps no SpiderEndpoint from going"
{{- end -}}

{{- define "ebbtide.accounts.node-leases" -}}
variables:
{{ include "ebbtide.accounts.node" . | indent 2 }}
  - name: now
    expression: "request.operation == 'UPDATE' ? object.?data.orValue({}) : {}"
  - name: was
    expression: "request.operation == 'UPDATE' ? oldObject.?data.orValue({}) : {}"
  # Its addresses from the cloud. What it is asked to give back is another key.
  - name: isCloud
    expression: >-
      request.operation == 'UPDATE' && object.metadata.name == 'ebbtide-cloud.' + variables.node &&
      'ebbtide.io/node-cloud' in oldObject.metadata.?labels.orValue({})
  - name: own
    expression: "variables.isCloud ? ['told.json'] : [variables.node, '_wanted.' + variables.node]"
validations:
{{ include "ebbtide.accounts.of-a-node" . | indent 2 }}
  - expression: "request.operation == 'UPDATE'"
    message: "an agent neither makes nor deletes ConfigMaps: the controller makes those of leases and of nodes' addresses"
  - expression: >-
      request.operation != 'UPDATE' || variables.isCloud || (object.metadata.name.startsWith('ebbtide-leases.') &&
      'ebbtide.io/leases' in oldObject.metadata.?labels.orValue({}))
    message: "an agent writes to no ConfigMap but those of leases, and its own node's of addresses from the cloud"
  - expression: >-
      request.operation != 'UPDATE' || (object.metadata.?labels == oldObject.metadata.?labels &&
      object.metadata.?annotations == oldObject.metadata.?annotations &&
      object.metadata.?finalizers == oldObject.metadata.?finalizers &&
      object.metadata.?ownerReferences == oldObject.metadata.?ownerReferences &&
      object.?binaryData == oldObject.?binaryData && object.?immutable == oldObject.?immutable)
    message: "an agent changes entries of a ConfigMap, and nothing else of it"
  - expression: >-
      variables.now.all(k, k in variables.own || (k in variables.was && variables.was[k] == variables.now[k])) &&
      variables.was.all(k, k in variables.own || k in variables.now)
    message: "an agent changes the entries of its own node alone, and of its addresses from the cloud what it tells"
{{- end -}}

{{- define "ebbtide.accounts.node-events" -}}
variables:
{{ include "ebbtide.accounts.node" . | indent 2 }}
validations:
{{ include "ebbtide.accounts.of-a-node" . | indent 2 }}
  - expression: >-
      object.?reportingController.orValue('') == 'ebbtide' && object.?reportingInstance.orValue('') == variables.node &&
      (request.operation == 'CREATE' || (oldObject.?reportingController.orValue('') == 'ebbtide' &&
      oldObject.?reportingInstance.orValue('') == variables.node))
    message: "an agent writes Events in its own name alone (reportingController ebbtide, reportingInstance its node)"
{{- end -}}

{{- define "ebbtide.accounts.controller-services" -}}
validations:
  - expression: "request.operation == 'CREATE' && has(request.dryRun) && request.dryRun"
    message: "the controller asks about Services by dry runs, and makes none"
{{- end -}}

{{- define "ebbtide.accounts.controller-attachments" -}}
variables:
  - name: owners
    expression: "object.metadata.?ownerReferences.orValue([]).filter(o, o.?controller.orValue(false))"
  - name: ownersBefore
    expression: >-
      request.operation == 'UPDATE' ? oldObject.metadata.?ownerReferences.orValue([]).filter(o, o.?controller.orValue(false)) : []
validations:
  - expression: >-
      variables.owners.exists(o, o.kind == 'SpiderMultusConfig' && o.apiVersion.startsWith('spiderpool.spidernet.io/'))
    message: "the controller writes NetworkAttachmentDefinitions of SpiderMultusConfigs alone"
  - expression: "variables.ownersBefore.all(before, variables.owners.exists(o, o.uid == before.uid))"
    message: "this NetworkAttachmentDefinition belongs to another object"
{{- end -}}

{{- define "ebbtide.accounts.controller-pools" -}}
variables:
  - name: now
    expression: "request.operation == 'DELETE' ? dyn({}) : dyn(object.spec)"
  - name: was
    expression: "request.operation == 'UPDATE' ? dyn(oldObject.spec) : dyn({})"
  - name: finalizers
    expression: "request.operation == 'DELETE' ? [] : object.metadata.?finalizers.orValue([])"
  - name: finalizersBefore
    expression: "request.operation == 'UPDATE' ? oldObject.metadata.?finalizers.orValue([]) : []"
  # Those that it publishes for nodes have three marks. One may have been removed by hand, and is put back.
  - name: marksBefore
    expression: >-
      request.operation == 'CREATE' ? 0 : ['ebbtide.io/derived' in oldObject.metadata.?annotations.orValue({}),
      'ebbtide.io/node' in oldObject.metadata.?labels.orValue({}),
      oldObject.metadata.?ownerReferences.orValue([]).exists(o, o.kind == 'Node' && o.apiVersion == 'v1')].filter(m, m).size()
  - name: owners
    expression: "request.operation == 'DELETE' ? [] : object.metadata.?ownerReferences.orValue([])"
  - name: isOfNode
    expression: >-
      request.operation == 'DELETE' || ('ebbtide.io/derived' in object.metadata.?annotations.orValue({}) &&
      variables.owners.size() == 1 && variables.owners[0].kind == 'Node' && variables.owners[0].apiVersion == 'v1' &&
      object.metadata.?labels[?'ebbtide.io/node'].orValue(variables.owners[0].name) == variables.owners[0].name &&
      variables.now.?nodeName.orValue([]) == [variables.owners[0].name])
  - name: isPublished
    expression: "(request.operation == 'CREATE' || variables.marksBefore >= 2) && variables.isOfNode"
validations:
  - expression: "request.operation == 'UPDATE' || variables.isPublished"
    message: >-
      the controller neither makes nor deletes pools but those that it publishes for a node (annotation ebbtide.io/derived,
      label ebbtide.io/node, the Node as owner and as nodeName)
  - expression: >-
      request.operation != 'UPDATE' || variables.isPublished || (variables.was.all(k, k in variables.now) &&
      variables.now.all(k, k in variables.was ? variables.was[k] == variables.now[k] : k == 'ipVersion'))
    message: "the controller completes ipVersion of a declared pool, and changes nothing else of its spec"
  - expression: >-
      request.operation != 'UPDATE' || variables.isPublished || (object.metadata.?labels == oldObject.metadata.?labels &&
      object.metadata.?annotations == oldObject.metadata.?annotations &&
      object.metadata.?ownerReferences == oldObject.metadata.?ownerReferences)
    message: "the controller changes finalizers of a declared pool, and nothing else of its metadata"
  - expression: >-
      variables.finalizers.all(f, f == 'spiderpool.spidernet.io' || f in variables.finalizersBefore) &&
      variables.finalizersBefore.all(f, f == 'spiderpool.spidernet.io' || f in variables.finalizers)
    message: "the controller changes no finalizer but spiderpool.spidernet.io"
{{- end -}}

{{- define "ebbtide.accounts.controller-endpoints" -}}
validations:
  - expression: "request.operation == 'UPDATE'"
    message: "the controller makes no SpiderEndpoints"
  - expression: >-
      request.operation != 'UPDATE' || (object.?status == oldObject.?status &&
      object.metadata.?labels == oldObject.metadata.?labels &&
      object.metadata.?annotations == oldObject.metadata.?annotations &&
      object.metadata.?ownerReferences == oldObject.metadata.?ownerReferences &&
      object.metadata.?finalizers.orValue([]).all(f, f in oldObject.metadata.?finalizers.orValue([])))
    message: "the controller takes finalizers from SpiderEndpoints, and changes nothing else of them"
{{- end -}}

{{- define "ebbtide.accounts.controller-leases" -}}
variables:
  - name: now
    expression: "request.operation == 'DELETE' ? {} : object.?data.orValue({})"
  - name: was
    expression: "request.operation == 'UPDATE' ? oldObject.?data.orValue({}) : {}"
  # Empty: the agent fills it. It goes with its Node.
  - name: isNewOfNode
    expression: >-
      request.operation == 'CREATE' && 'ebbtide.io/node-cloud' in object.metadata.?labels.orValue({}) &&
      object.metadata.?ownerReferences.orValue([]).exists(o, o.kind == 'Node' && o.apiVersion == 'v1' &&
      object.metadata.name == 'ebbtide-cloud.' + o.name)
validations:
  - expression: >-
      variables.isNewOfNode || (request.operation != 'DELETE' && object.metadata.name.startsWith('ebbtide-leases.') &&
      'ebbtide.io/leases' in object.metadata.?labels.orValue({}))
    message: "the controller writes no ConfigMaps but those of leases, and makes those of nodes' addresses from the cloud"
  - expression: >-
      request.operation != 'UPDATE' || (object.metadata.?labels == oldObject.metadata.?labels &&
      object.metadata.?annotations == oldObject.metadata.?annotations &&
      object.metadata.?finalizers == oldObject.metadata.?finalizers &&
      object.metadata.?ownerReferences == oldObject.metadata.?ownerReferences &&
      object.?binaryData == oldObject.?binaryData && object.?immutable == oldObject.?immutable)
    message: "the controller takes entries out of leases, and changes nothing else of their ConfigMap"
  - expression: "variables.now.all(k, k in variables.was && variables.was[k] == variables.now[k])"
    message: "the controller gives leases to no node: it takes those of nodes that are gone"
{{- end -}}

{{- define "ebbtide.accounts.cloud-asked" -}}
variables:
  - name: now
    expression: "request.operation == 'UPDATE' ? object.?data.orValue({}) : {}"
  - name: was
    expression: "request.operation == 'UPDATE' ? oldObject.?data.orValue({}) : {}"
validations:
  - expression: >-
      request.operation == 'UPDATE' && object.metadata.name.startsWith('ebbtide-cloud.') &&
      'ebbtide.io/node-cloud' in oldObject.metadata.?labels.orValue({})
    message: "the cloud controller writes no ConfigMaps but those of nodes' cloud addresses"
  - expression: >-
      request.operation != 'UPDATE' || (object.metadata.?labels == oldObject.metadata.?labels &&
      object.metadata.?annotations == oldObject.metadata.?annotations &&
      object.metadata.?finalizers == oldObject.metadata.?finalizers &&
      object.metadata.?ownerReferences == oldObject.metadata.?ownerReferences &&
      object.?binaryData == oldObject.?binaryData && object.?immutable == oldObject.?immutable)
    message: "the cloud controller changes what is asked back, and nothing else of a ConfigMap"
  - expression: >-
      variables.now.all(k, k == 'asked.json' || (k in variables.was && variables.was[k] == variables.now[k])) &&
      variables.was.all(k, k == 'asked.json' || k in variables.now)
    message: "the cloud controller changes what is asked back (asked.json), and nothing else of a ConfigMap"
{{- end -}}

{{- define "ebbtide.accounts.cloud-events" -}}
validations:
  - expression: >-
      object.?reportingController.orValue('') == 'ebbtide' && object.?regarding.?kind.orValue('') == 'Node' &&
      (request.operation == 'CREATE' || oldObject.?reportingController.orValue('') == 'ebbtide')
    message: "the cloud controller writes Events on nodes alone, in its own name"
{{- end -}}
