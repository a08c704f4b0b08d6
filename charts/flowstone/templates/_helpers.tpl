{{/* Name of all objects: the release, with the chart's name unless it is in it already. */}}
{{- define "flowstone.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 48 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 48 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "flowstone.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of every object; selectors add app.kubernetes.io/component to the first two. */}}
{{- define "flowstone.labels" -}}
{{ include "flowstone.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: flowstone
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The embedded Postgres is an application of its own: whoever selects FlowStone's pods must not hit it. */}}
{{- define "flowstone.postgresSelector" -}}
app.kubernetes.io/name: postgres
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: database
{{- end -}}

{{- define "flowstone.postgresLabels" -}}
{{ include "flowstone.postgresSelector" . }}
app.kubernetes.io/part-of: flowstone
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "flowstone.serviceAccount" -}}
{{- default (include "flowstone.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "flowstone.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}

{{- define "flowstone.postgresHost" -}}
{{- printf "%s-postgres.%s.svc" (include "flowstone.fullname" .) .Release.Namespace -}}
{{- end -}}

{{/* Secret of the operator's own login. */}}
{{- define "flowstone.operatorSecret" -}}
{{- if .Values.postgres.embedded.enabled -}}
{{- include "flowstone.fullname" . }}-postgres-operator
{{- else -}}
{{- .Values.postgres.existingSecret -}}
{{- end -}}
{{- end -}}

{{/* Secret of the login that may create schemas and roles. */}}
{{- define "flowstone.installerSecret" -}}
{{- if .Values.postgres.embedded.enabled -}}
{{- include "flowstone.fullname" . }}-postgres-installer
{{- else -}}
{{- .Values.postgres.installerSecret -}}
{{- end -}}
{{- end -}}

{{/* Secret with the key of signed contexts. */}}
{{- define "flowstone.contextSecret" -}}
{{- default (printf "%s-context-key" (include "flowstone.fullname" .)) .Values.tenants.contextKey.existingSecret -}}
{{- end -}}

{{/* What the pod security standard "restricted" asks of every container. */}}
{{- define "flowstone.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Refusals that need more than one value. */}}
{{- define "flowstone.validate" -}}
{{- with .Values.postgres -}}
{{- if and .embedded.enabled .existingSecret -}}
{{- fail "postgres.embedded.enabled and postgres.existingSecret exclude each other: name the Secret of your own Postgres, or take the embedded one to try things out." -}}
{{- end -}}
{{- if and (not .embedded.enabled) (not .existingSecret) -}}
{{- fail "postgres.existingSecret is not set: name a Secret with PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD and PGSSLMODE of the operator's login, or set postgres.embedded.enabled=true to try things out." -}}
{{- end -}}
{{- if and (not .embedded.enabled) $.Values.migrate.enabled (not .installerSecret) -}}
{{- fail "postgres.installerSecret is not set: name a Secret with the PG* keys of a login that may create schemas and roles, or set migrate.enabled=false and run `flowstone migrate` yourself." -}}
{{- end -}}
{{- if and .existingSecret (eq .existingSecret .installerSecret) -}}
{{- fail "postgres.existingSecret and postgres.installerSecret are the same Secret: the operator would run with the installer's rights. Make one for each login." -}}
{{- end -}}
{{- end -}}
{{- end -}}
