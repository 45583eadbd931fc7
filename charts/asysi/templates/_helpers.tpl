{{- define "asysi.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "asysi.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains (include "asysi.name" .) .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "asysi.name" .) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* What the Deployment selects: never changes in the life of a release. */ -}}
{{- define "asysi.selector" -}}
app.kubernetes.io/name: {{ include "asysi.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "asysi.labels" -}}
{{ include "asysi.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: asysi
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "asysi.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "asysi.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- /* asysi.image: a reference from {image, chart}. */ -}}
{{- define "asysi.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (.image.tag | default .chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- /*
Everything that the operator does with the API, once: the Role of each namespace and the ClusterRole are both
made of this, so neither can drift. Each verb is used; a test compares them with what the operator asked for.
*/ -}}
{{- define "asysi.rules" -}}
- apiGroups: [asysi.dev]
  resources: [scanexperiments]
  verbs: [get, list, watch]
- apiGroups: [asysi.dev]
  resources: [scanexperiments/status]
  verbs: [patch]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps, persistentvolumeclaims]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
{{- end -}}


{{- /* Objects of the whole cluster carry the namespace too, so that two releases of one name do not meet. */ -}}
{{- define "asysi.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "asysi.fullname" .) -}}
{{- end -}}

{{- /* Labels of every experiment's pods, which the operator makes. */ -}}
{{- define "asysi.experiments" -}}
app.kubernetes.io/part-of: asysi
app.kubernetes.io/component: experiment
{{- end -}}

{{- define "asysi.experimentsMonitor" -}}
{{- printf "%s-experiments" (include "asysi.fullname" .) -}}
{{- end -}}

{{- define "asysi.alertLabels" -}}
{{- range $name, $value := .alertLabels }}, {{ $name }}: {{ $value | quote }}{{ end -}}
{{- end -}}

{{- /* asysi.runbook: the annotation from [rules, alert]. */ -}}
{{- define "asysi.runbook" -}}
{{- with (index . 0).runbookUrl -}}
runbook_url: {{ printf "%s#%s" . (index $ 1 | lower) }}
{{- end -}}
{{- end -}}

{{- /* Not the selector's component: the Deployment must not take the test's pod for its own. */ -}}
{{- define "asysi.testLabels" -}}
app.kubernetes.io/name: {{ include "asysi.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: test
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Named ports of an experiment's pod; a test compares them with the contract. */ -}}
{{- define "asysi.experimentPorts" -}}
[host, hook, sae, archiver, finish]
{{- end -}}

{{- /* What experiments may choose, as the operator takes it: what is not set is left out. */ -}}
{{- define "asysi.allowed" -}}
{{- $allowed := dict -}}
{{- range $key, $value := .Values.allowed -}}
{{- if ne (toString $value) "" }}{{ $_ := set $allowed $key $value }}{{ end -}}
{{- end -}}
{{- toJson $allowed -}}
{{- end -}}

{{- /* Who may call the ports of experiments' pods: metrics readers, and the operator for /status. */ -}}
{{- define "asysi.metricsReaders" -}}
{{- $own := dict "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" .Release.Namespace)) "podSelector" (dict "matchLabels" (include "asysi.selector" . | fromYaml)) -}}
{{- toJson (append .Values.metrics.readers $own) -}}
{{- end -}}

{{- /* asysi.allows: CEL that says whether the expression `it` is one of the names, from {it, names}. */ -}}
{{- define "asysi.allows" -}}
{{- $ors := list -}}
{{- range .names -}}
{{- if hasSuffix "*" . -}}
{{- $ors = append $ors (printf "%s.startsWith('%s')" $.it (trimSuffix "*" .)) -}}
{{- else -}}
{{- $ors = append $ors (printf "%s == '%s'" $.it .) -}}
{{- end -}}
{{- end -}}
{{- if $ors }}({{ join " || " $ors }}){{ else }}false{{ end -}}
{{- end -}}

{{- /* asysi.mayBe: the rule for a list of chosen names, from {field, them, names, value}. */ -}}
{{- define "asysi.mayBe" -}}
- expression: {{ printf "%s.all(one, %s)" .them (include "asysi.allows" (dict "it" "one" "names" .names)) | quote }}
  message: {{ printf "spec.%s: allowed is %s" .field (join ", " .names | default "none") | quote }}
  reason: Forbidden
{{- end -}}

{{- define "asysi.crdName" -}}
scanexperiments.asysi.dev
{{- end -}}

{{- /* Whose the CRD is that is there; nothing when there is none, or when it is this release's. */ -}}
{{- define "asysi.crdOwner" -}}
{{- with lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" (include "asysi.crdName" .) -}}
{{- $annotations := .metadata.annotations | default dict -}}
{{- $name := get $annotations "meta.helm.sh/release-name" -}}
{{- $namespace := get $annotations "meta.helm.sh/release-namespace" -}}
{{- if not $name -}}
no release of Helm
{{- else if not (and (eq $name $.Release.Name) (eq $namespace $.Release.Namespace)) -}}
release {{ $name }} in namespace {{ $namespace }}
{{- end -}}
{{- end -}}
{{- end -}}
