import pytest
from shadow.front import sparse
from shadow.jobs import checks, ingredients, loading, policies, stores
@pytest.mark.parametrize("o",[["predictor=teal","sparsity.budgets=global"],["predictor=teal","sparsity.stand_in=mean"],["predictor=cats","sparsity.budgets=global"],["predictor=cats","model=tiny-opt"]],ids=str)
def test_x(compose,batch,o):
    cfg=compose("evaluate",*(["model=tiny-llama","make_missing=true","data.windows=4","data.tokens=12","+trainer.enable_progress_bar=false"]+o)); checks.check_evaluate(cfg)
    lm=loading.load_lm(cfg)
    try:
        s=ingredients.get_scorer(cfg,lm); st=stores.get_stand_in(cfg,lm); p=policies.get_policy(cfg,lm,s,st)
        print(o,p.levels)
        with sparse(lm.model,s,p,"token",stand_in=st) as run: run.logits(batch)
        print(run.achieved(p.kinds[0]))
    except Exception as e: print(o,type(e).__name__,e)
